"""Processes that look for each other before JAX does: those that are wrong are told so, all of them."""

import http.server
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

import pytest
from helpers.runs import PATIENCE, free_port

from rn50_jax.distributed import rendezvous
from rn50_jax.distributed.rendezvous import meet
from rn50_jax.errors import UserError

Meet = Callable[..., list[str]]


@pytest.fixture
def together() -> Meet:
    """Lets processes, (number, count) each, meet; returns what each of them is told, "" where all is well."""

    def run(*processes: tuple[int, int], address: str = "", timeout: float = PATIENCE) -> list[str]:
        address = address or f"127.0.0.1:{free_port()}"
        # JAX's service, which the others wait for once they have met.
        taken_over = threading.Event()

        def one(number: int, count: int) -> str:
            try:
                meet(address, number, count, timeout=timeout)
            except UserError as error:
                return str(error)
            if number == 0:
                with rendezvous._listen(int(address.rpartition(":")[2])):
                    taken_over.wait(PATIENCE)
            return ""

        with ThreadPoolExecutor(len(processes)) as pool:
            futures: list[Future[str]] = [pool.submit(one, *process) for process in processes]
            told = [future.result(PATIENCE) for (number, _), future in zip(processes, futures, strict=True) if number]
            taken_over.set()
            told += [
                future.result(PATIENCE) for (number, _), future in zip(processes, futures, strict=True) if not number
            ]
        return told

    return run


def test_all_are_there(together: Meet) -> None:
    assert together((2, 3), (0, 3), (1, 3)) == [""] * 3
    with suppress(OSError):  # a machine without IPv6
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
            port = server.getsockname()[1]
        assert together((1, 2), (0, 2), address=f"[::1]:{port}") == [""] * 2


def all_alike(told: list[str]) -> str:
    (text,) = set(told)
    return text


def test_different_counts(together: Meet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "_LATE", PATIENCE)  # however late one is
    text = all_alike(together((0, 2), (1, 3), (2, 3)))
    assert text.startswith("process ") and "was started as one of 3, process 0 on" in text
    assert "as one of 2; give all the same --num_processes" in text and socket.gethostname() in text


@pytest.mark.parametrize("numbers", [(0, 1, 1), (0, 0)])
def test_a_number_that_two_have(together: Meet, numbers: tuple[int, ...]) -> None:
    text = all_alike(together(*((number, len(numbers)) for number in numbers)))
    assert text.startswith(f"two processes have the number {numbers[-1]}, on {socket.gethostname()} (process ")
    assert "give each its own --process_id, from 0 to" in text


def test_one_that_does_not_come(
    together: Meet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rendezvous, "_FIRST_WORD", 0.0)
    address = f"127.0.0.1:{free_port()}"
    missing = "processes 2, 3 of 4"
    assert all_alike(together((0, 4), (1, 4), address=address, timeout=8)) == (
        f"{missing} did not come to {address} in 8 s"
    )
    assert f"waiting at {address} for process" in capsys.readouterr().err


def test_no_process_0(together: Meet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(rendezvous, "_FIRST_WORD", 0.0)
    address = f"127.0.0.1:{free_port()}"
    (told,) = together((1, 2), address=address, timeout=1)
    assert told == f"--coordinator {address}: Connection refused; is process 0 running, and the port open?"
    assert f"waiting for process 0 at {address} (Connection refused), for up to " in capsys.readouterr().err


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_a_web_server_at_the_address(together: Meet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "_STRANGE", 0.0)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            address = f"127.0.0.1:{server.server_address[1]}"
            other, first = together((0, 2), (1, 2), address=address)
        finally:
            server.shutdown()
            thread.join()
    assert first == f"--coordinator {address}: Address already in use; choose another port"
    assert other.startswith(f"--coordinator {address}: something else answers there (<!DOCTYPE HTML>")
    assert "give all the same free port" in other


def test_something_silent_at_the_address(together: Meet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "_STRANGE", 0.0)
    monkeypatch.setattr(rendezvous, "_ANSWER", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        (told,) = together((1, 2), address=address)
    assert told.startswith(f"--coordinator {address}: what is there does not answer, not the process 0 of a run")


def test_strangers_and_the_dead_do_not_count(together: Meet) -> None:
    address = f"127.0.0.1:{free_port()}"
    words = [b"GET / HTTP/1.1\r\n\r\n", b"[1, 2]\n", b'{"number": 1}\n', b"\xff\n", b"x" * 10_000, b"[" * 4000 + b"\n"]
    dead = b'{"number": 1, "count": 3, "place": "a machine that is gone"}\n'

    def disturb() -> None:
        for word in (*words, b"", dead):
            with connect(address) as stranger:
                assert stranger.recv(100) == rendezvous._GREETING
                stranger.sendall(word)

    with ThreadPoolExecutor(1) as pool:
        host = pool.submit(meet, address, 0, 3, timeout=PATIENCE)
        disturb()
        with connect(address) as held:  # half open, until all is over
            with ThreadPoolExecutor(2) as others:
                told = [others.submit(together, (number, 3), address=address) for number in (1, 2)]
                host.result(PATIENCE)
                with rendezvous._listen(int(address.rpartition(":")[2])):  # JAX's service
                    assert [future.result(PATIENCE) for future in told] == [[""], [""]]
            assert held.recv(100) in (b"", rendezvous._GREETING)


def connect(address: str) -> socket.socket:
    while True:
        with suppress(ConnectionRefusedError):
            return rendezvous._connect(address)
        time.sleep(0.01)


def test_a_connection_to_itself_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux makes one where the port that is called is free and happens to be given to the caller."""

    def reach_itself(*_: object, **__: object) -> socket.socket:
        caller = socket.socket()
        caller.bind(("127.0.0.1", 0))
        caller.connect(caller.getsockname())
        return caller

    monkeypatch.setattr(socket, "create_connection", reach_itself)
    with pytest.raises(ConnectionRefusedError):
        rendezvous._connect("127.0.0.1:1")
