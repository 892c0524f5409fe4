"""Spot machines that come and go: a stream of events that no training changes."""

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

HOUR = 3600.0
STRIKE_S = 60.0
"""A stock-out takes its machines within this long."""


@dataclass(frozen=True, slots=True, order=True)
class Event:
    """Something that happens to one machine."""

    at: float
    node: str
    kind: Literal["up", "notice", "gone", "vanished"]
    """vanished: gone without a notice, and without a goodbye to its peers."""
    gone: float = 0.0
    """Of a notice: when the machine goes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Market:
    """Assumptions about spot machines; a slot is one machine that is replaced when it goes."""

    slots: int = 16
    lifetime_s: float = 4 * HOUR
    """Mean; lifetimes are exponential."""
    notice_s: float = 30.0
    unannounced: float = 0.1
    """Share of machines that vanish without a notice."""
    boot_s: float = 90.0
    """From the start of a machine to its place in the cluster; paid."""
    delay_s: float = 120.0
    """Mean of the exponential wait for a new machine, before it starts to boot."""
    stock_every_s: float = 24 * HOUR
    """Mean time between two stock-outs; in one, no slot gets a new machine. 0: never any."""
    stock_lasts_s: float = 1 * HOUR
    """Mean length of a stock-out."""
    struck: float = 0.25
    """Share of the machines that a stock-out takes as it begins."""


class StockOuts:
    """Times when nobody gets a machine; the same for all slots."""

    def __init__(self, market: Market, seed: int) -> None:
        self.market, self.random = market, random.Random(f"stock {seed}")
        self.found: list[tuple[float, float]] = []

    def first_end_after(self, at: float) -> tuple[float, float]:
        """Return the first stock-out that ends after `at`."""
        if not self.market.stock_every_s:
            return float("inf"), float("inf")
        while not self.found or self.found[-1][1] <= at:
            begin = self.found[-1][1] if self.found else 0.0
            begin += self.random.expovariate(1 / self.market.stock_every_s)
            lasts = self.random.expovariate(1 / self.market.stock_lasts_s)
            self.found.append((begin, begin + lasts))
        low, high = 0, len(self.found) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.found[middle][1] > at else (middle + 1, high)
        return self.found[low]

    def over(self, at: float) -> float:
        """Return when machines can be had again, from `at` on."""
        begin, end = self.first_end_after(at)
        return end if begin <= at else at


def events(market: Market, seed: int) -> Iterator[Event]:
    """Yield what happens, in order, without end; the same for the same seed."""
    stock = StockOuts(market, seed)
    return heapq.merge(*(_slot(market, seed, slot, stock) for slot in range(market.slots)))


def _slot(market: Market, seed: int, slot: int, stock: StockOuts) -> Iterator[Event]:
    dice, at, number = random.Random(f"slot {seed} {slot}"), 0.0, 0
    while True:
        at = stock.over(at + dice.expovariate(1 / market.delay_s)) + market.boot_s
        node, number = f"{slot}.{number}", number + 1
        yield Event(at, node, "up")
        gone = min(at + dice.expovariate(1 / market.lifetime_s), _struck(market, dice, at, stock))
        if dice.random() < market.unannounced:
            yield Event(gone, node, "vanished")
        else:
            yield Event(max(at, gone - market.notice_s), node, "notice", gone)
            yield Event(gone, node, "gone")
        at = gone


def _struck(market: Market, dice: random.Random, up: float, stock: StockOuts) -> float:
    """Return when a stock-out takes a machine that is up since `up`; it takes one at the latest."""
    at = up
    while True:
        begin, end = stock.first_end_after(at)
        if begin == float("inf"):
            return begin
        if begin >= up and dice.random() < market.struck:
            return begin + dice.random() * STRIKE_S
        at = end


def calm(workers: int, boot_s: float) -> Iterator[Event]:
    """Yield machines that come at once and stay."""
    yield from (Event(boot_s, f"{slot}.0", "up") for slot in range(workers))
