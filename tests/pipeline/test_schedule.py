import pytest

from imagen.errors import ConfigError
from pipeline import schedule


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("6h", 21600), ("1d", 86400)]
)
def test_a_time_is_a_number_and_a_unit(text, seconds):
    assert schedule.seconds(text) == seconds


@pytest.mark.parametrize("text", ["30", "m", "0m", "-5m", "1w", "1h30m", ""])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ConfigError, match="is no time"):
        schedule.seconds(text)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("1m", "*/1 * * * *"),
        ("30m", "*/30 * * * *"),
        ("1h", "0 * * * *"),
        ("6h", "0 */6 * * *"),
        ("1d", "0 0 * * *"),
    ],
)
def test_cron_is_told_in_its_five_fields(text, fields):
    assert schedule.crontab(schedule.seconds(text)) == fields


@pytest.mark.parametrize("text", ["90s", "7m", "5h", "2d"])
def test_what_cron_cannot_say_evenly_is_refused(text):
    with pytest.raises(ConfigError, match="cron cannot say"):
        schedule.crontab(schedule.seconds(text))


class Enough(Exception):
    """Ends a loop."""


def ticks(lasting, every_s):
    """Return when the ticks of a loop came, each of which lasts so long."""
    now, came, left = [1000.0], [], list(lasting)

    def tick():
        if not left:
            raise Enough
        came.append(now[0] - 1000.0)
        now[0] += left.pop(0)

    def sleep(seconds):
        assert 0 < seconds <= every_s
        now[0] += seconds

    with pytest.raises(Enough):
        schedule.loop(tick, every_s, lambda: now[0], sleep)
    return came


def test_ticks_come_at_once_and_then_at_even_times_however_long_each_takes():
    assert ticks([1, 9, 3], 10) == [0, 10, 20]


def test_ticks_that_were_missed_are_left_out():
    assert ticks([35, 1, 1], 10) == [0, 40, 50]
