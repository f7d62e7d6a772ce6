"""Sessions know their tokens: a text that is given with one is right whatever it holds; models that are closed."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bitgen
from bitgen.errors import ArgumentError, EngineError

PROMPT = "Once upon a time, there was a little dog"
GREEDY = bitgen.Sampling(temperature=0)


@pytest.fixture(scope="module")
def model() -> bitgen.Model:
    return bitgen.Model.load(threads=2)


# ---- tokens --------------------------------------------------------------------------------------------------

steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.lists(st.integers(0, 99), min_size=1, max_size=5)),
        st.tuples(st.just("forward"), st.lists(st.integers(0, 99), min_size=1, max_size=5)),
        st.tuples(st.just("next"), st.lists(st.integers(0, 99), min_size=1, max_size=5)),
        st.tuples(st.just("batch"), st.lists(st.integers(0, 99), min_size=1, max_size=5)),
        st.tuples(st.just("rewind"), st.integers(0, 99)),
        st.tuples(st.just("fail"), st.sampled_from(["id", "context", "choice", "batch"])),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(steps)
def test_tokens_are_what_was_appended(model: bitgen.Model, calls: list[tuple[str, Any]]) -> None:
    held: list[int] = []
    with model.session(context=60) as session, session.share(60) as beside:
        for what, value in calls:
            if what == "rewind":
                session.rewind(value % (len(held) + 1))
                del held[value % (len(held) + 1) :]
            elif what == "fail":
                with pytest.raises(EngineError):
                    fail(session, beside, value)
            elif len(held) + len(value) <= 60:
                before = beside.tokens
                append(session, beside, what, value)
                held += value
                assert beside.tokens == ([*before, 7] if what == "batch" else before)
                beside.rewind(0)
            assert session.tokens == held and session.position == len(held)


def append(session: bitgen.Session, beside: bitgen.Session, what: str, tokens: list[int]) -> None:
    if what == "append":
        session.append(tokens)
    elif what == "forward":
        session.forward(tokens)
    elif what == "next":
        session.next(tokens, GREEDY, tokens, 0)
    else:
        bitgen.forward_batch([beside, session], [[7], tokens])


def fail(session: bitgen.Session, beside: bitgen.Session, how: str) -> None:
    if how == "id":
        session.append([1, 10**6])
    elif how == "context":
        session.append([1] * 61)
    elif how == "choice":
        session.next([1, 2], GREEDY, [1], 0, 2)
    else:
        bitgen.forward_batch([session, beside, session], [[1], [2], [3]])


def test_a_choice_that_fails_in_a_batch_leaves_the_tokens(model: bitgen.Model) -> None:
    with model.session(context=8) as a, a.share(8) as b:
        choices = [bitgen.Choice(GREEDY, [1], 0), bitgen.Choice(GREEDY, [2], 0)]
        with pytest.raises(EngineError):
            bitgen.next_batch([a, b], [[1], [2] * 9], choices)
        assert a.tokens == b.tokens == []
        bitgen.next_batch([a, b], [[1], [2]], choices)
        assert (a.tokens, b.tokens) == ([1], [2])


def test_a_session_at_work_elsewhere_keeps_its_tokens(model: bitgen.Model) -> None:
    """Given beside one that it does not share with, it is refused, and not touched: a pass may be going on in it."""
    with model.session(context=8) as a, model.session(context=8) as b:
        b.append([5, 6])
        with b._turn.take():
            b._note(np.array([7, 8], np.int32))  # as a pass does that has not moved the position yet
            with pytest.raises(EngineError, match="differ, share"):
                bitgen.forward_batch([a, b], [[1], [2]])
        assert b._tokens.tolist() == [5, 6, 7, 8] and b.tokens == [5, 6] and a.tokens == []


# ---- texts that go on ----------------------------------------------------------------------------------------


def test_a_session_goes_on_with_what_it_holds(model: bitgen.Model) -> None:
    prompts = [
        PROMPT,
        PROMPT + " named Tom.",  # goes on
        PROMPT + " with a",  # and from before
        "Lily",  # nothing in common
        PROMPT,
        "Once upon",  # the start of what is held
        [1, 2, 3],
        [1, 2, 3],
    ]
    with model.session() as session:
        for prompt in prompts:
            held = session.tokens
            generation = model.generate(prompt, 12, session=session, seed=2)
            assert "".join(generation) == "".join(model.generate(prompt, 12, seed=2))
            ids = generation.prompt_ids
            same = next(i for i, (a, b) in enumerate(zip([*ids, -1], [*held, -2], strict=False)) if a != b)
            assert generation.timing.prompt_tokens == len(ids) - min(same, len(ids) - 1)
            assert session.tokens == generation.history[: session.position]


def test_it_may_hold_anything_when_the_text_begins(model: bitgen.Model) -> None:
    """Between the call and the first piece others may use it; between two pieces that is an error."""
    want = "".join(model.generate(PROMPT, 8, seed=1))
    with model.session() as session:
        generation = model.generate(PROMPT, 8, seed=1, session=session)
        session.append([9, 9, 9])
        assert "".join(generation) == want
        changes: list[Callable[[], Any]] = [
            lambda: (session.rewind(session.position - 1), session.append([4])),  # as many tokens as before
            lambda: session.rewind(session.position),
            lambda: session.append([1]),
            lambda: "".join(model.generate("Lily", 2, session=session)),
        ]
        for change in changes:
            pieces = iter(model.generate(PROMPT, 8, seed=1, session=session))
            next(pieces)
            change()
            with pytest.raises(EngineError, match="another call changed the session of this generation"):
                list(pieces)


def test_prompt_lookup_in_a_session(model: bitgen.Model) -> None:
    prompt = "Tom has a red ball. Tom has a red ball. Tom has"
    with model.session() as session:
        for _ in range(2):
            generation = model.generate(prompt, 40, session=session, prompt_lookup=8, seed=1)
            assert "".join(generation) == "".join(model.generate(prompt, 40, seed=1))
            assert session.tokens == generation.history[: session.position]
    assert generation.timing.accepted > 0


def test_memory_of_the_tokens_is_small(model: bitgen.Model) -> None:
    with model.session() as session:
        for _ in range(50):
            session.append([1] * 400)
            session.rewind(0)
        assert len(session._tokens) <= 400 and session._tokens.itemsize == 4


# ---- a model that is closed ----------------------------------------------------------------------------------


def test_a_closed_model_says_so() -> None:
    with bitgen.Model.load(threads=1) as model:
        session, batch = model.session(context=32), bitgen.Batch(model, 1, context=32)
        chat, pieces = bitgen.Chat(model, template="llama3"), iter(model.generate(PROMPT, 5))
        request = batch.submit("A", 3)
        next(pieces)
        session.append([1])
    assert "closed" in repr(model) and "closed" in repr(session)
    calls: list[Callable[[], Any]] = [
        lambda: session.append([1]),
        lambda: session.rewind(0),
        lambda: session.tokens,
        lambda: session.share(),
        lambda: session.save("never.kv"),
        lambda: batch.step(),
        lambda: list(chat.say("A", 3)),
        lambda: next(pieces),
        lambda: model.session(),
        lambda: list(model.generate("A", 1)),
        lambda: model.logits([1]),
        lambda: model.embed(["a"]),
        lambda: model.score("a b"),
        lambda: model.generate_many(["A"], 1),
        lambda: bitgen.Batch(model, 1),
    ]
    for call in calls:
        with pytest.raises(EngineError, match="this model is closed"):
            call()
    assert request.text == ""
    assert model.tokenizer.encode("A") and model.shape.vocab  # what needs no weights
    for opened in (session, batch, chat, model):
        opened.close()
    model.close()
    gc.collect()


def test_a_model_is_closed_while_a_session_is_open() -> None:
    model = bitgen.Model.load(threads=1)
    session = model.session(context=8)
    want = session.forward([1, 2]).copy()
    model.close()
    del model
    gc.collect()
    with pytest.raises(EngineError, match="this model is closed"):
        session.forward([1])
    session.close()
    with bitgen.Model.load(threads=1) as again:
        assert np.array_equal(again.logits([1, 2])[-1], want)


# ---- what they say of themselves -----------------------------------------------------------------------------


def test_what_they_say_of_themselves(model: bitgen.Model) -> None:
    assert repr(model) == f"<Model stories on {model.plan.isa}, certified head, 2 threads>"
    with model.session(context=16, cache="int8") as session:
        session.append([1, 2])
        assert repr(session) == "<Session of stories: 2 of 16 tokens, int8 cache>"
        with session.share() as other:
            assert repr(other) == "<Session of stories: 0 of 512 tokens, int8 cache>"
    assert repr(session) == "<Session of stories: closed>"
    generation = model.generate([1, 2, 3], 4, stop=False)
    assert repr(generation) == "<Generation: 3 tokens of a prompt, 0 of at most 4 after it>"
    list(generation)
    assert repr(generation) == "<Generation: 3 tokens of a prompt, 4 of at most 4 after it, length>"
    with bitgen.Batch(model, 2, context=16) as batch:
        requests = [batch.submit("A", 3, stop=False) for _ in range(3)]
        batch.step()
        assert repr(batch) == "<Batch of stories: 2 of 2 places taken, 1 texts waiting>"
        assert repr(requests[0]).startswith("<Request: ")
    assert repr(batch) == "<Batch of stories: closed>"
    with bitgen.Chat(model, template="llama3", context=64) as chat:
        list(chat.say("A", 3))
        assert repr(chat).startswith("<Chat with stories: 1 turns, 0 more forgotten, <Session of stories: ")
    assert repr(bitgen.Sampling(seed=3)).startswith("Sampling(temperature=0.7, top_k=40, ")


# ---- conversations -------------------------------------------------------------------------------------------

USER, ANSWER = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes?"}


def test_a_conversation_is_answered(model: bitgen.Model) -> None:
    with bitgen.Chat(model, template="falcon3", system="Be kind.") as chat:
        want = "".join(chat.say("Hello", 12, GREEDY))
    messages = [{"role": "system", "content": "Be kind."}, USER]
    answer = model.chat(messages, 12, template="falcon3", sampling=GREEDY)
    assert "".join(answer) == answer.text == want
    assert answer.timing.tokens == 12 and messages[1] is USER and USER == {"role": "user", "content": "Hello"}
    more = model.chat([*messages, {"role": "assistant", "content": want}, USER], 8, template="falcon3", seed=3)
    with model.session() as session:
        list(model.chat(messages, 12, template="falcon3", sampling=GREEDY, session=session))
        again = model.chat([*messages, {"role": "assistant", "content": want}, USER], 8, template="falcon3", seed=3,
                           session=session)  # fmt: skip
        assert "".join(more) == "".join(again)
        assert again.timing.prompt_tokens < more.timing.prompt_tokens  # the start of it was there


def test_what_is_no_conversation(model: bitgen.Model) -> None:
    wrong: list[tuple[Any, str, type[Exception]]] = [
        ("Hello", "messages is 'Hello', must be a list of messages", TypeError),
        (USER, "messages is .*, must be a list of messages", TypeError),
        (None, "messages is None, must be a list", TypeError),
        ([], "messages is empty, must be a conversation", ValueError),
        ([USER, ANSWER], "messages ends with an answer, must be a conversation", ValueError),
        (["Hello"], r"messages\[0\] is 'Hello', must be {\"role\"", TypeError),
        ([{"role": "user"}], r"messages\[0\] has the keys \['role'\], must be", ValueError),
        ([{**USER, "name": "Tom"}], r"messages\[0\] has the keys .*'name'.*, must be", ValueError),
        ([{"role": "tool", "content": "a"}], r"messages\[0\]\['role'\] is 'tool', must be one of", ValueError),
        ([{"role": 5, "content": "a"}], r"messages\[0\]\['role'\] is 5, must be one of", TypeError),
        ([{"role": "user", "content": None}], r"messages\[0\]\['content'\] is None, must be a text", TypeError),
        ([{"role": "user", "content": ["a"]}], r"messages\[0\]\['content'\] is .*, must be a text", TypeError),
    ]  # fmt: skip
    for messages, words, kind in wrong:
        with pytest.raises(kind, match=words) as caught:
            model.chat(messages, template="llama3")
        assert isinstance(caught.value, ArgumentError) and "\n" not in str(caught.value)
    for template in (5, b"llama3", []):
        with pytest.raises(TypeError, match=r"template is .*, must be a text"):
            model.chat([USER], template=template)  # type: ignore[arg-type]
    with pytest.raises(bitgen.BitgenError, match=r"the prompt has \d+ tokens, the context holds 512"):
        model.chat([{"role": "user", "content": "word " * 600}], template="llama3")
    with pytest.raises(bitgen.UnsupportedError, match="carries no chat template"):
        model.chat([USER])
    for system in (5, b"a"):
        with pytest.raises(TypeError, match=r"system is .*, must be a text"):
            bitgen.Chat(model, system=system, template="llama3")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"messages\[0\]\['role'\] is 'system', must be one of user, assistant"):
        bitgen.Chat(model, template="llama3", messages=[{"role": "system", "content": "a"}])
