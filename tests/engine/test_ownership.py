"""One thread at a time, in one process, without copies: what else is done with a session is an error, and no crash, no
hang and no other text."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import bitgen
from bitgen import api
from bitgen.engine import session as sessions
from bitgen.engine.chat import Chat
from bitgen.errors import ArgumentError, EngineError

BUSY = "is at work in another call; it is for one thread at a time"


@pytest.fixture(scope="module")
def model() -> bitgen.Model:
    return bitgen.Model.load(threads=2)


def run(script: str) -> list[str]:
    """The lines that a script prints in a process of its own, which has two minutes."""
    start = "import gc, os, signal, sys, threading\nfrom bitgen import Batch, EngineError, Model\n"
    done = subprocess.run(
        [sys.executable, "-c", start + textwrap.dedent(script)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


# ---- threads -------------------------------------------------------------------------------------------------


def test_close_during_a_pass() -> None:
    """Another thread closes the session at every time of a pass, and others that share it, and their model is gone."""
    said = run("""
        model, said = Model.load(threads=2), set()
        def work(session, beside, begun):
            try:
                while True:
                    session.rewind(0)
                    begun.set()
                    session.forward([1] * 321)
            except EngineError as error:
                said.add(str(error))
        for i in range(30):
            session, begun = model.session(context=321), threading.Event()
            beside = session.share(8)
            thread = threading.Thread(target=work, args=(session, beside, begun))
            thread.start()
            begun.wait()
            threading.Event().wait(0.0005 * i)
            beside.close()
            session.close()
            thread.join()
        print(*said)
    """)
    assert said == ["this session is closed"]


def calls(session: bitgen.Session) -> list[Callable[[], Any]]:
    """All that goes into the runtime."""
    greedy = bitgen.Sampling(temperature=0)
    return [
        lambda: session.forward([1]),
        lambda: session.append([1]),
        lambda: session.next([1], greedy, [1], 0),
        lambda: session.sample(greedy, np.zeros(session.vocab, np.float32), [], 0),
        lambda: session.rewind(0),
        lambda: session.profile(False),
        lambda: session.share(8),
        lambda: sessions.states_batch([session], [[1]]),
    ]


def test_a_second_call_is_an_error_at_once(model: bitgen.Model) -> None:
    with model.session(context=8) as first, first.share() as beside, model.session(context=8) as apart:
        want = apart.forward([1, 2])
        with first._turn.take():  # as a pass does
            for call in calls(first) + calls(beside):
                with pytest.raises(EngineError, match=f"this session {BUSY}"):
                    call()
            assert first.position == beside.position == 0  # which may be asked
            apart.rewind(0)
        assert np.array_equal(first.forward([1, 2]), want)


def test_two_threads_in_one_session(model: bitgen.Model) -> None:
    """One of them gets its logits, the other an error, and the cache holds whole passes."""
    with model.session(context=512) as session:
        said: set[str] = set()

        def work() -> None:
            while not said and session.position < 500:
                try:
                    session.append([1] * 4)
                except EngineError as error:
                    said.add(str(error))

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        held = session.position
        assert held % 4 == 0 and said <= {f"this session {BUSY}"}
        session.rewind(held - 1)
        assert np.array_equal(session.forward([1]), model.logits([1] * held)[-1])


def test_a_batch_is_for_one_thread(model: bitgen.Model) -> None:
    with bitgen.Batch(model, 2, context=32) as batch:
        request = batch.submit("Once", 5, temperature=0)
        with batch._turn.take():
            for call in (batch.step, lambda: batch.submit("A"), lambda: batch.cancel(request)):
                with pytest.raises(EngineError, match=f"this batch {BUSY}"):
                    call()
        while batch.busy:
            batch.step()
    assert request.text == "".join(model.generate("Once", 5, temperature=0))


def test_a_batch_closed_during_a_step(model: bitgen.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = bitgen.Batch(model, 2, context=32)
    request, waiting = batch.submit("Once", 5), [batch.submit("A", 5) for _ in range(3)][-1]
    passed = sessions._run
    monkeypatch.setattr(sessions, "_run", lambda *call: (passed(*call), batch.close())[0])
    with pytest.raises(EngineError, match="this batch is closed"):
        batch.step()
    assert request.cancelled and waiting.cancelled and not batch.busy and request.token_ids == []


def test_cancelling_what_is_not_there(model: bitgen.Model) -> None:
    with bitgen.Batch(model, 1, context=32) as batch, bitgen.Batch(model, 1, context=32) as other:
        waiting, mine = other.submit("A", 5), batch.submit("A", 3, temperature=0)
        other.submit("A", 5)
        with pytest.raises(ArgumentError, match="request is one of another batch, must be one of this batch"):
            batch.cancel(waiting)
        with pytest.raises(TypeError, match="request is 'A', must be a Request of this batch"):
            batch.cancel("A")  # type: ignore[arg-type]
        other.cancel(waiting)
        other.cancel(waiting)
        while batch.busy:
            batch.step()
        batch.cancel(mine)
        assert not mine.cancelled and len(mine.token_ids) == 3


# ---- processes, copies, the end ------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process() -> None:
    """It cannot use the sessions of the process before, whose threads are not in it; but it can the model."""
    lines = run("""
        model = Model.load(threads=2)
        def child(job):
            sys.stdout.flush()
            pid = os.fork()
            if not pid:
                signal.alarm(60)  # a hang is another status
                try:
                    print(job())
                except EngineError as error:
                    print(error)
                sys.exit()
            status = os.waitpid(pid, 0)[1]
            if status:
                print("status", status)
        want = "".join(model.generate("Once", 5, temperature=0))
        session = model.session(context=512)
        beside, batch = session.share(), Batch(model, 2, context=32)
        batch.submit("Once", 5)
        pieces = iter(model.generate("Once upon a time", 50))
        next(pieces)
        session.append([1])
        def end():
            global session, beside, batch, pieces, model
            session = beside = batch = pieces = model = None
            return gc.collect() >= 0
        child(lambda: session.forward([1]))
        child(lambda: session.rewind(0))
        child(lambda: session.share())
        child(batch.step)
        child(lambda: batch.submit("A"))
        child(lambda: next(pieces))
        for close in (session.close, beside.close, batch.close, pieces.close, end):
            child(close)
        child(lambda: "".join(model.generate("Once", 5, temperature=0)) == want)
        child(lambda: model.generate_many(["Once"] * 3, 5, temperature=0) == [want] * 3)
        child(lambda: model.embed(["a", "b"]).shape[0])
        stop, begun = threading.Event(), threading.Event()
        def work():
            while not stop.is_set():
                session.rewind(0)
                begun.set()
                session.forward([1] * 400)
        thread = threading.Thread(target=work)
        thread.start()
        begun.wait()
        child(lambda: session.forward([1]))  # whose turn it is in a thread that is not here
        child(lambda: model.session(context=8).forward([1]).size)
        stop.set()
        thread.join()
        session.rewind(1)
        print(session.forward([1]).size)
    """)
    made = "this {} was made in another process; open another here".format
    assert lines[:6] == [made("session")] * 3 + [made("batch")] * 2 + [made("session")]
    assert lines[6:] == ["None"] * 4 + ["True", "True", "True", "2", made("session"), "4096", "4096"]


def test_no_copies(model: bitgen.Model) -> None:
    with model.session(context=8) as session, bitgen.Batch(model, 1, context=8) as batch:
        chat = Chat(model, template="llama3")
        owners: list[Any] = [model, session, batch, batch.submit("A"), model.generate("A"), chat]
        for owner in owners:
            for copied in (copy.copy, copy.deepcopy, pickle.dumps):
                with pytest.raises(TypeError, match=f"a {type(owner).__name__} cannot be copied or pickled"):
                    copied(owner)
        chat.close()
    sampling = bitgen.Sampling(0.5, seed=2**64 - 1)
    assert copy.deepcopy(sampling) == pickle.loads(pickle.dumps(sampling)) == sampling


def test_python_ends_with_all_of_it_open() -> None:
    """At the end of the main thread, with cycles, and while another thread is in a pass."""
    assert run("""
        model = Model.load(threads=2)
        session, batch, pieces = model.session(), Batch(model, 2, context=32), iter(model.generate("Once", 9))
        batch.submit("A")
        batch.step()
        next(pieces)
        session.itself, model.session_of = session, model.session(context=8)
        def work():
            while True:
                session.rewind(0)
                session.append([1] * 100)
        threading.Thread(target=work, daemon=True).start()
        print("end")
    """) == ["end"]


def test_sessions_outlive_their_model() -> None:
    assert run("""
        def opened():
            return Model.load(threads=2).session(context=8)
        session = opened()
        gc.collect()
        print(session.forward([1]).size)
        beside = session.share()
        beside.itself, beside.first = beside, session  # a cycle, which is cleared in any order
        del session, beside
        gc.collect()
        print(len(os.listdir("/proc/self/task")) if sys.platform == "linux" else 1)
    """) == ["4096", "1"]


# ---- what breaks off -----------------------------------------------------------------------------------------


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Ctrl-C in the n-th pass from now on: Python raises it when the call into C returns."""
    passed, left = sessions._run, [0]

    def run(*call: Any) -> int:
        code = passed(*call)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return code

    monkeypatch.setattr(sessions, "_run", run)
    yield lambda n: left.__setitem__(0, n)


def test_a_session_after_an_interrupt(model: bitgen.Model, interrupted: Callable[[int], None]) -> None:
    with model.session(context=16) as session:
        session.append([1, 2])
        interrupted(1)
        with pytest.raises(KeyboardInterrupt):
            session.forward([3, 4, 5])
        assert session.position == 5  # they are in the cache
        assert np.array_equal(session.forward([6]), model.logits([1, 2, 3, 4, 5, 6])[-1])


@pytest.mark.parametrize("at", range(1, 8))
def test_a_batch_after_an_interrupt(model: bitgen.Model, interrupted: Callable[[int], None], at: int) -> None:
    """The step is made anew: each text is the one that it would be without. The second begins in several pieces."""
    prompts = ["Once upon a time", "One day, Tom went to the park with his mother. They", "Lily"]
    with bitgen.Batch(model, 2, context=64, prefill=8) as batch:
        requests = [batch.submit(prompt, 8, temperature=1, seed=3, stop=False) for prompt in prompts]
        interrupted(at)
        with pytest.raises(KeyboardInterrupt):
            while batch.busy:
                batch.step()
        for _ in range(40):
            batch.step()
        assert not batch.busy
    for request, prompt in zip(requests, prompts, strict=True):
        assert request.text == "".join(model.generate(prompt, 8, temperature=1, seed=3, stop=False))


def test_a_generation_is_iterated_once(model: bitgen.Model, interrupted: Callable[[int], None]) -> None:
    whole = "".join(model.generate("Once upon a time", 10, temperature=0))
    with model.session() as session:
        for begin in (None, session):
            generation = model.generate("Once upon a time", 10, temperature=0, session=begin)
            pieces = iter(generation)
            first = next(pieces)
            with pytest.raises(EngineError, match="this generation was iterated before"):
                iter(generation)
            assert first + "".join(pieces) == generation.text == whole
            with pytest.raises(EngineError, match="this generation was iterated before"):
                "".join(generation)
            session.rewind(0)
    generation = model.generate("Once upon a time", 10, temperature=0)
    interrupted(3)
    with pytest.raises(KeyboardInterrupt):
        "".join(generation)
    assert generation.text and whole.startswith(generation.text)
    with pytest.raises(EngineError, match="this generation was iterated before"):
        next(iter(generation))


def test_a_generation_in_a_session_that_others_change(model: bitgen.Model) -> None:
    def begun() -> tuple[bitgen.Session, Iterator[str]]:
        session = model.session(context=32)
        pieces = iter(model.generate([1, 2, 3], 10, temperature=0, session=session))
        next(pieces)
        return session, pieces

    for change in (lambda s: s.rewind(1), lambda s: s.append([1])):
        session, pieces = begun()
        change(session)
        with pytest.raises(EngineError, match="another call changed the session"):
            next(pieces)
    session, pieces = begun()
    session.close()
    with pytest.raises(EngineError, match="this session is closed"):
        next(pieces)
    with pytest.raises(EngineError, match="this session is closed"):
        model.generate("A", session=session)


def test_a_generation_in_a_session_of_another_model(model: bitgen.Model) -> None:
    with bitgen.Model.load(threads=1).session(context=32) as other:
        with pytest.raises(ArgumentError, match="session is one of another model"):
            model.generate([1, 2, 3], session=other)
        with pytest.raises(TypeError, match="session is 5, must be a Session"):
            model.generate([1, 2, 3], session=5)  # type: ignore[arg-type]


def test_what_is_left_of_a_generation_is_freed(model: bitgen.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bitgen.Session] = []
    close = bitgen.Session.close
    monkeypatch.setattr(bitgen.Session, "close", lambda self: (closed.append(self), close(self))[1])
    for piece in model.generate("Once upon a time", 50):
        assert piece
        break
    gc.collect()
    assert len(closed) == 1 and closed[0]._handle is None


def test_an_error_in_a_callback(model: bitgen.Model) -> None:
    """It comes to the caller as it is."""

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        api.perplexity(model, "Tom has a red ball. " * 40, ctx=32, progress=fail)
    assert api.perplexity(model, "Tom has a red ball. " * 40, ctx=32).value > 1


def test_a_request_that_its_user_spoils_fails_alone(model: bitgen.Model) -> None:
    with bitgen.Batch(model, 3, context=64, prefill=2) as batch:
        requests = [batch.submit(prompt, 6, temperature=0) for prompt in ("Once upon a time", "Tom ran to the", "Lily")]
        batch.step()
        requests[1].prompt_ids[-1] = 2**40
        while batch.busy:
            batch.step()
    assert isinstance(requests[1].error, EngineError) and "outside the vocabulary" in str(requests[1].error)
    for request in (requests[0], requests[2]):
        assert request.text == "".join(model.generate(request.prompt_ids, 6, temperature=0))
