import socket
import threading

import pytest

from preencode.sources import addresses


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1"),
        *("169.254.169.254", "100.64.0.1", "224.0.0.1", "255.255.255.255", "240.0.0.1"),
        *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "fd00:ec2::254"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::a9fe:a9fe"),
        *("::7f00:1", "::127.0.0.1", "::ffff:0:7f00:1", "64:ff9b:1::7f00:1", "fec0::1"),
        *("2002:a00:1::", "2001:0:808:808:0:0:f5ff:fffe", "64:ff9b::7f00:1"),  # 10.0.0.1 inside
        "no address",
    ],
)
def test_addresses_that_strangers_may_not_name_are_not_public(address):
    assert not addresses.is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"]
)
def test_addresses_of_the_internet_are_public(address):
    assert addresses.is_public(address)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "0x7f000001", "2130706433", "::1"])
def test_every_way_to_write_this_machine_is_refused(host):
    with pytest.raises(addresses.RefusedError) as caught:
        addresses.checked(host, 80, allow_private=False, timeout_s=9)
    assert caught.value.args[0] == "private_address"


def test_private_addresses_are_for_who_asks_for_them():
    assert addresses.checked("127.0.0.1", 80, allow_private=True, timeout_s=9) == ["127.0.0.1"]


def test_of_a_host_with_addresses_of_both_kinds_the_public_ones_are_taken(monkeypatch):
    found = [(2, 1, 6, "", (a, 80)) for a in ("10.0.0.1", "8.8.8.8", "8.8.8.8")]
    monkeypatch.setattr(addresses.socket, "getaddrinfo", lambda *_, **__: found)
    assert addresses.checked("two.example", 80, allow_private=False, timeout_s=9) == ["8.8.8.8"]


def test_a_host_that_does_not_exist_is_told():
    with pytest.raises(addresses.RefusedError) as caught:
        addresses.checked("no-such-host.invalid", 80, allow_private=False, timeout_s=9)
    assert caught.value.args[0] == "dns"


def test_a_name_server_that_never_answers_is_left_when_the_time_is_over(monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: ended.wait(60) and [])
    with pytest.raises(TimeoutError, match=r"no name server said where slow\.example is"):
        addresses.checked("slow.example", 80, allow_private=False, timeout_s=0.05)
    ended.set()
