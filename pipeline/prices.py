"""The price table: what machines, storage and requests cost, and where that was found."""

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from imagen.config import load_config
from imagen.errors import ConfigError

PATH = os.path.join(os.path.dirname(__file__), "prices.yaml")
HEAD, CORES = "head", "cores"
"""Keys of `uses` that are no stages: the head node, and what encodes without a GPU."""
NEEDED = (HEAD, CORES, "import", "preencode", "prepare", "train", "eval", "publish")
ON_CORES = (HEAD, CORES, "import", "prepare", "publish")
"""What no GPU does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """A kind of machine that can be rented."""

    cores: int
    """Virtual CPUs."""
    on_demand: float
    """Dollars an hour."""
    spot: float | None = None
    """Dollars an hour as long as nobody else wants it; None: not to be had."""
    card: str = ""
    """GPU, as its data sheet names it; empty: none."""
    cards: int = 0
    """GPUs."""

    def __post_init__(self) -> None:
        if self.cores < 1 or self.cards < 0:
            raise ConfigError(f"a machine with {self.cores} cores and {self.cards} cards")
        if min(self.on_demand, self.spot or 0) < 0:
            raise ConfigError(f"prices {self.on_demand} and {self.spot} are not both 0 or more")
        if bool(self.card) != bool(self.cards):
            raise ConfigError(f"card {self.card!r} and cards {self.cards}: give both or none")

    @property
    def workers(self) -> int:
        """How many workers it has room for: one a GPU, else one a core."""
        return self.cards or self.cores

    @property
    def without_cards(self) -> "Machine":
        """The same for work that its cores do: its price is divided among them."""
        return replace(self, card="", cards=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Assumed:
    """What stands in for measurements."""

    mfu: float
    """Share of a card's peak that is reached, in (0, 1]."""
    core_mfu: float
    """Share of a core's peak that is reached, in (0, 1]."""

    def __post_init__(self) -> None:
        for key in ("mfu", "core_mfu"):
            if not 0 < getattr(self, key) <= 1:
                raise ConfigError(f"{key} {getattr(self, key)} is not in (0, 1]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prices:
    """The whole table."""

    region: str
    """Where the prices are of."""
    sources: dict[str, str] = field(default_factory=dict)
    """Where and when they were found."""
    machines: dict[str, Machine]
    """What can be rented."""
    uses: dict[str, str]
    """Stage -> name of the machine that it runs on."""
    storage_gb_month: float
    """Dollars for 10^9 bytes and a month."""
    write_1000: float
    """Dollars for a thousand writes or lists."""
    read_1000: float
    """Dollars for a thousand reads."""
    assumed: Assumed
    """What stands in for measurements."""

    def __post_init__(self) -> None:
        for use, name in self.uses.items():
            if name not in self.machines:
                raise ConfigError(f"uses.{use} is {name!r}, which `machines` does not have")
        missing = [use for use in NEEDED if use not in self.uses]
        if missing:
            raise ConfigError(f"uses says nothing of {', '.join(missing)}")
        if min(self.storage_gb_month, self.write_1000, self.read_1000) < 0:
            raise ConfigError("a price of storage or requests is negative")

    def named(self, name: str) -> Machine:
        """Return a machine by name. Raises ConfigError."""
        if name not in self.machines:
            near = difflib.get_close_matches(name, self.machines, n=1)
            meant = f"did you mean {near[0]}? " if near else ""
            raise ConfigError(
                f"the price table has no machine {name!r}",
                f"{meant}it has: {', '.join(self.machines)}; add it to {PATH} or a copy",
            )
        return self.machines[name]

    def of(self, use: str, chosen: str | None = None) -> tuple[str, Machine]:
        """Return name and machine of a stage; `chosen` stands above the table. Raises ConfigError.

        A chosen machine with GPUs stands for stages that use them, one without for all stages; the
        head stays what the table says. Work of cores is counted by the cores of its machine.
        """
        cores = use in ON_CORES
        stays = use == HEAD or not chosen or (cores and self.named(chosen).cards)
        name = chosen if chosen and not stays else self.uses[use]
        machine = self.named(name)
        return name, machine.without_cards if cores else machine


def load(path: str | None = None) -> Prices:
    """Return the table at a path or URL, None: the one beside this file. Raises ConfigError."""
    return load_config(Prices, path or PATH)


def money(dollars: float | None) -> str:
    """Return an amount as people read it."""
    if dollars is None:
        return "?"
    if dollars == 0 or dollars >= 0.005:
        return f"${dollars:,.2f}"
    return "<$0.01"


def spot_and_on_demand(worker_hours: float, machine: Machine) -> Mapping[str, float | None]:
    """Return what worker-hours cost on a machine whose workers are all at work."""
    hours = worker_hours / machine.workers
    spot = None if machine.spot is None else hours * machine.spot
    return {"spot": spot, "on_demand": hours * machine.on_demand}
