"""When a stage is submitted again and again: every so often, missed times left out."""

import re
import time
from collections.abc import Callable

from imagen.errors import ConfigError

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86400


def seconds(text: str) -> int:
    """Return `30m` as 1800. Raises ConfigError."""
    found = re.fullmatch(r"(\d+)([smhd])", text)
    if not found or not int(found[1]):
        raise ConfigError(f"--every `{text}` is no time", "a number and a unit: 90s, 30m, 2h, 1d")
    return int(found[1]) * UNITS[found[2]]


def crontab(every_s: int) -> str:
    """Return the five fields by which cron means every so many seconds. Raises ConfigError."""
    if every_s % MINUTE_S == 0 and HOUR_S % every_s == 0:
        return f"*/{every_s // MINUTE_S} * * * *" if every_s < HOUR_S else "0 * * * *"
    if every_s % HOUR_S == 0 and DAY_S % every_s == 0:
        return f"0 */{every_s // HOUR_S} * * *" if every_s < DAY_S else "0 0 * * *"
    raise ConfigError(
        f"cron cannot say every {every_s} s evenly",
        "take a divisor of an hour or of a day: 15m, 30m, 1h, 6h, 1d",
    )


def loop(
    tick: Callable[[], None],
    every_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Call `tick` now and every `every_s` seconds after, until it raises; what is missed is missed.

    A tick that takes longer than `every_s` is followed by the next whole multiple, not by many.
    """
    start = clock()
    while True:
        tick()
        late = clock() - start
        sleep(every_s - late % every_s)
