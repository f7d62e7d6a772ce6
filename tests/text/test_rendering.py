"""Chat templates: the text that transformers makes of them, and nothing that one of them does outlives its limits."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
from typing import Any

import pytest

from bitgen.data import shipped_path
from bitgen.errors import LONGEST, BitgenError, FormatError, UnsupportedError, brief
from bitgen.gguf.reader import read_gguf
from bitgen.text import rendering
from bitgen.text.chat_templates import NAMED, carried
from bitgen.text.render_worker import CHARACTERS
from bitgen.text.rendering import RenderProcess, Template
from bitgen.text.tokenizer import Tokenizer

LOOP = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
MESSAGES = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": 'Hi <b>"there"</b> & é\n'},
    {"role": "assistant", "content": "<think>hm</think>\n\nYes?"},
    {"role": "user", "content": "Go\ton"},
]
WORDS = {"bos_token": "<s>", "eos_token": "</s>"}
CONTEXT = {"messages": MESSAGES, "add_generation_prompt": True, "tools": None, "documents": None, **WORDS}

TEMPLATES = {
    **NAMED,
    "plain": LOOP + "{% if add_generation_prompt %}[assistant]{% endif %}",
    "tools are none": "{% if tools is not none %}TOOLS{% endif %}{% if tools is none %}no tools{% endif %}" + LOOP,
    "tools are defined": "{% if not tools is defined %}{% set tools = 1 %}{% endif %}{{ tools }}",
    "documents are none": "{% if documents is not none %}DOCS{% endif %}{{ documents is defined }}" + LOOP,
    "tools or documents": "{% if tools or documents %}some{% else %}none{% endif %}"
    "{{ tools | length if tools else 0 }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}|{% endfor %}",
    "generation in a condition": "{% for m in messages %}{% if m.role == 'assistant' %}\n  {%- generation -%}\n  "
    "{{ m.content }}\n  {%- endgeneration -%}\n{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "generation has a scope": "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
    "generation sees the loop": "{% for m in messages %}{% generation %}{{ loop.index }}{{ m.role }}{% endgeneration %}"
    "{% endfor %}",
    "generation sets a namespace": "{% set n = namespace(a=1) %}{% generation %}{% set n.a = 2 %}"
    "{% endgeneration %}{{ n.a }}",
    "break": "{% for m in messages %}{% if loop.index0 == 2 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "continue": "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
    "tojson": "{{ messages | tojson }}",
    "tojson indented": "{{ messages | tojson(indent=2) }}{{ messages[0] | tojson(4) }}",
    "tojson ascii": "{{ messages | tojson(ensure_ascii=True) }}{{ messages | tojson(true) }}",
    "tojson sorted": "{{ {'b': 1, 'a': [none, true, 1.5]} | tojson(sort_keys=True, separators=(',', ':')) }}",
    "tojson of nothing": "{{ nothing | tojson }}",
    "tojson with more": "{{ messages | tojson(default=1) }}",
    "whitespace": "  {% if true %}\n    x\n  {% endif %}\n  y\n{% for m in messages %}\n  "
    "{{ m.role }}\n{% endfor %}\nend\n",
    "comments": "a {# no #}\n{#- none -#}\n b",
    "special tokens": "{{ bos_token }}{{ eos_token }}{{ bos_token is defined }}{{ eos_token + 'x' }}",
    "absent special tokens": "{{ pad_token }}{{ unk_token is defined }}",
    "absent special tokens added": "{{ pad_token + 'x' }}",
    "raise_exception": "{{ raise_exception('roles must alternate') }}",
    "raise_exception unless": "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}ok",
    "strftime_now": "{{ strftime_now('%Y') | length }}{{ strftime_now is defined }}{{ strftime_now('%%') }}",
    "namespace": "{% set n = namespace(last='') %}{% for m in messages %}{% set n.last = m.role %}"
    "{% endfor %}{{ n.last }}",
    "macro": "{% macro turn(m) %}<{{ m.role }}>{{ m.content | trim }}{% endmacro %}"
    "{{ turn(messages[0]) }}{{ turn(messages[1]) }}",
    "call": "{% macro frame() %}[{{ caller() }}]{% endmacro %}{% call frame() %}{{ messages[1].content }}{% endcall %}",
    "slices": "{% for m in messages[1:] %}{{ m['role'] }}{% endfor %}{{ messages[-1].content }}"
    "{{ messages[::-1][0].role }}",
    "alternating": "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('alternate') }}{% endif %}{% endfor %}",
    "strings": "{{ messages[2].content.split('</think>')[-1].lstrip('\\n') }}"
    "{{ messages[1].content.replace('<b>', '') }}"
    "{{ messages[3].content.startswith('Go') }}{{ 'a' ~ 1 ~ none }}{{ '%s-%d' | format('x', 3) }}",
    "filters": "{{ messages | map(attribute='role') | join(',') }}"
    "{{ messages | selectattr('role', 'equalto', 'user') | list "
    "| length }}{{ messages[0].content | trim | upper }}{{ (messages | first).role | title }}{{ messages | length }}",
    "tests": "{{ messages is iterable }}{{ messages[0] is mapping }}"
    "{{ messages[0].content is string }}{{ x is undefined }}",
    "default": "{{ system_message | default('none') }}{{ '' | default('d', true) }}",
    "attributes absent": "{{ messages[0].tool_calls is defined }}{{ messages[0].name }}"
    "{{ messages[0].get('name', 'x') }}",
    "deep absent": "{{ messages[0].a.b }}",
    "dict items": "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}{{ messages[0] | dictsort }}",
    "python types": "{{ true }}{{ none }}{{ 1 / 2 }}{{ 7 // 2 }}{{ [1, 'a'] }}{{ {'a': 1} }}{{ (1,) }}",
    "html": "{{ messages[1].content }}{{ messages[1].content | e }}{{ '<' | safe }}",
    "autoescape": "{% autoescape true %}{{ messages[1].content }}{% endautoescape %}",
    "the sandbox": "{{ ''.__class__ }}{{ messages.append(1) }}",
    "unsafe names": "{{ ''.__class__ }}|{{ strftime_now.__globals__ }}",
    "a zero": "{{ 1 / 0 }}",
    "a range too long": "{% for i in range(10**9) %}x{% endfor %}",
    "an index too large": "{{ messages[7].content }}",
    "an unknown tag": "{% nonsense %}",
    "an unclosed tag": "{% if x %}",
}  # fmt: skip


def outcome(call: Any) -> str | None:
    """The text, or None where there is an error."""
    try:
        return str(call())
    except Exception:
        return None


@pytest.mark.transformers
@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES)
def test_texts_are_those_of_transformers(source: str) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    wanted = outcome(
        lambda: utils.render_jinja_template(
            [MESSAGES], chat_template=source, add_generation_prompt=True, tools=None, documents=None, **WORDS
        )[0][0]
    )
    assert outcome(lambda: Template(source).render(CONTEXT)) == wanted


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% if tools is none and documents is none %}none{% endif %}", "none"),
        ("{% generation %}{{ messages[3].content }}{% endgeneration %}", "Go\ton"),
        ("{{ messages[1] | tojson }}", '{"role": "user", "content": "Hi <b>\\"there\\"</b> & é\\n"}'),
        ("{{ bos_token }}{{ pad_token is defined }}", "<s>False"),
    ],
)
def test_what_templates_find(source: str, text: str) -> None:
    assert Template(source).render(CONTEXT) == text


FAULTS = {
    "division": "{{ 1 / 0 }}",
    "modulo": "{{ 1 % 0 }}",
    "codec": "{{ 'x'.encode('nope') }}",
    "macro without end": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "loop without end": "{% for x in [messages] recursive %}{{ loop([messages]) }}{% endfor %}",
    "cycle of nothing": "{{ cycler() }}",
    "slices of nothing": "{{ [1] | slice(0) | list }}",
    "encoder": "{{ [1] | tojson(cls=dict) }}",
    "overflow": "{{ 2.0 ** 5000 }}",
    "unpacking": "{% for a, b in [1] %}{% endfor %}",
    "its own words": "{{ raise_exception('\x1b[2J' ~ 'no ' * 1000) }}",
    "file": "{% include '/etc/passwd' %}",
    "memory": "{% set n = 10 ** 10 %}{{ 'a' * n }}",
    "memory by doubling": "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "width": "{{ '{:>9999999999}'.format('a') }}",
    "padding": "{{ 'a'.center(10 ** 10) }}",
    "a long text": "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
    "depth": "{% set n = namespace(x=[]) %}{% for i in range(5000) %}{% set n.x = [n.x] %}"
    "{% endfor %}{{ n.x | tojson }}",
}
COMPILATION = {
    "digits": "{{ 10 ** 5000 }}",
    "parentheses": "{{ " + "(" * 500 + "1" + ")" * 500 + " }}",
    "operators": "{{ " + "not " * 5000 + "1 }}",
    "loops": "{% for a in b %}" * 25 + "{% endfor %}" * 25,
    "conditions": "{% if a %}" * 200 + "{% endif %}" * 200,
    "time": "{{ 2 ** (2 ** 40) }}",
}


def assert_a_sentence(error: BaseException, beginning: str) -> None:
    assert str(error).startswith(beginning) and len(str(error)) <= LONGEST and str(error).isprintable()


@pytest.mark.parametrize("source", FAULTS.values(), ids=FAULTS)
def test_a_fault_is_a_sentence_that_names_the_template(source: str) -> None:
    template = Template(source, "the chat template 'mine'")
    with pytest.raises(BitgenError) as caught:
        template.render(CONTEXT)
    assert_a_sentence(caught.value, "the chat template 'mine' refuses this conversation: ")


@pytest.mark.parametrize("source", COMPILATION.values(), ids=COMPILATION)
def test_what_cannot_be_compiled_is_not_called_broken(source: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        Template(source)
    assert_a_sentence(caught.value, "the chat template does not compile: ")


@pytest.mark.parametrize("source", ["{% for %}", "{{ ", "{% if a %}", "{% nonsense %}"])
def test_what_is_no_template(source: str) -> None:
    with pytest.raises(FormatError) as caught:
        Template(source)
    assert_a_sentence(caught.value, "the chat template is not a Jinja2 template: ")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count or limit memory otherwise")
def test_memory_that_the_machine_has_is_limited_too() -> None:
    """A GiB, which is there: the limit is the template's, not the machine's."""
    with pytest.raises(BitgenError, match="it takes more than 512 MiB of memory"):
        Template("{% set n = 2 ** 30 %}{{ ('a' * n) | length }}").render(CONTEXT)
    assert Template("{% set n = 2 ** 20 %}{{ ('a' * n) | length }}").render(CONTEXT) == "1048576"


def test_a_text_has_a_longest_length() -> None:
    template = Template("{% for i in range(n) %}{{ 'a' * 1024 }}{% endfor %}")
    assert len(template.render({"n": 4096})) == CHARACTERS
    with pytest.raises(BitgenError, match="a text of more than 4,194,304 characters"):
        template.render({"n": 4097})


def test_a_template_without_end_is_ended_and_others_go_on() -> None:
    source = (
        "{% if messages %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{% endif %}ok"
    )
    template = Template(source)
    with pytest.raises(BitgenError, match="takes more than 2 s"):
        template.render(CONTEXT)
    assert template.render({"messages": []}) == "ok"


def sleeper() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_a_process_that_does_not_reply_is_ended() -> None:
    with sleeper() as process:
        assert "takes more than" in rendering._exchange(process, b"{}\n", 0.2)["fault"]
        assert process.wait() == -signal.SIGKILL


def test_a_process_that_dies_is_a_fault() -> None:
    process = sleeper()
    process.kill()
    assert "does not survive" in rendering._exchange(process, b"{}\n", 600)["fault"]
    rendering._end(process)


def test_an_interrupt_leaves_no_reply_for_the_next_request() -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with sleeper() as process:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(KeyboardInterrupt):
                rendering._exchange(process, b"{}\n", 600)
            assert process.wait() == -signal.SIGKILL
    finally:
        signal.signal(signal.SIGALRM, before)


def test_its_process_ends_with_a_template() -> None:
    template = Template(LOOP)
    renderer = template._renderer
    assert isinstance(renderer, RenderProcess)
    process = renderer._process
    assert process is not None and process.poll() is None
    del template, renderer
    gc.collect()
    assert process.poll() is not None


def test_templates_that_ship_need_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering.sys, "executable", "/nowhere/python")
    for source in NAMED.values():
        assert "Go" in Template(source).render(CONTEXT)
    with pytest.raises(BitgenError, match=r"cannot start /nowhere/python.*No such file"):
        Template(LOOP)


def test_brief() -> None:
    assert brief("a\n  b\x1b[2J\ud800", 40) == "a b\\x1b[2J\\ud800"
    assert brief("a" * 50, 10) == "aaaa…aaaaa"


def test_special_tokens_by_the_names_of_templates() -> None:
    metadata = dict(read_gguf(shipped_path()).metadata)
    words = Tokenizer.from_metadata(metadata).special_words
    assert words["bos_token"] == "<|begin_of_text|>" and "pad_token" not in words
    for id, wanted in ((5, metadata["tokenizer.ggml.tokens"][5]), (1 << 31, None)):
        more = Tokenizer.from_metadata({**metadata, "tokenizer.ggml.padding_token_id": id}).special_words
        assert more.get("pad_token") == wanted


def test_templates_that_a_file_carries() -> None:
    key = "tokenizer.chat_template"
    assert carried({key: "a", f"{key}.tool_use": "b", f"{key}s": ["tool_use"], f"{key}.empty": " "}) == {
        "default": "a", "tool_use": "b",
    }  # fmt: skip
    for name in (key, f"{key}.rag"):
        for value in ([1, 2], [], 7, True, ["a text"]):
            with pytest.raises(FormatError, match=f"^{name} is not a text"):
                carried({name: value})
