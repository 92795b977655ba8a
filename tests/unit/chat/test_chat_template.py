"""Templates render as in transformers, know the origin of what they write, and stay within their limits."""

from __future__ import annotations

import subprocess
import sys

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from chat_samples import CONVERSATIONS, GOLDEN, assistant, tokenizer_of, user
from tutelage.chat.budget import Limits
from tutelage.chat.template import NAMED_TEMPLATES, Template, load_template, named_template, special_tokens_needed
from tutelage.chat.view import MessageForm, template_messages
from tutelage.data.conversation import Conversation, Json
from tutelage.errors import ConfigError, TemplateError

PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


def transformers_text(source: str, conversation: Conversation, **variables: Json) -> str:
    messages, tools = template_messages(conversation.messages), [dict(tool) for tool in conversation.tools]
    texts, _ = render_jinja_template([messages], tools=tools or None, chat_template=source, **variables)
    return texts[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", NAMED_TEMPLATES)
def test_the_templates_that_ship_render_as_in_transformers(name: str, conversation: str) -> None:
    template, record = named_template(name), CONVERSATIONS[conversation]
    expected = transformers_text(template.source, record)
    assert template.trace(record.messages, record.tools).text == expected
    assert template.render(template_messages(record.messages), record.tools) == expected


# Each writes the content of a message in a way of its own.
EXPRESSIONS = [
    "{{ m.content }}",
    "{{ m['content'] }}",
    "{{ m.get('content') }}",
    "{{ m.content | trim }}",
    "{{ m.content.strip('\\n').lstrip() }}",
    "{{ m.content | trim | upper }}",
    "{{ '[' + m.content + ']' }}",
    "{{ '[' ~ m.content ~ 1 ~ ']' }}",
    "{{ '[%s]' % m.content }}",
    "{{ '[%s|%s]' % (m.role, m.content) }}",
    "{{ '[{}]'.format(m.content) }}",
    "{{ '[{text}]'.format(text=m.content) }}",
    "{{ '[%s]' | format(m.content) }}",
    "{{ [m.role, m.content] | join(': ') }}",
    "{{ ': '.join([m.role, m.content]) }}",
    "{{ messages | map(attribute='content') | join(' ') }}",
    "{{ m.content | replace('two', '2') }}",
    "{{ m.content.replace('two', '2') }}",
    "{{ m.content.split(' ') | join('_') }}",
    "{{ m.content.split('</think>')[-1] }}",
    "{{ m.content[1:-1] }}",
    "{{ m.content | indent(2) }}",
    "{{ m.content | default('none') }}",
    "{{ m.content | string }}",
    "{{ m.content | tojson }}",
    "{{ m | tojson }}",
    "{{ m | tojson(indent=2) }}",
    "{{ {'role': m.role, 'text': m.content} | tojson(separators=(',', ':'), sort_keys=true) }}",
    "{{ m.content | e }}",
    "{{ '<b>' + (m.content | safe) + '&' }}",
    "{% for letter in m.content %}{{ letter }}.{% endfor %}",
    "{% set text %}{{ m.content }}{% endset %}{{ text }}",
    "{% macro show(x) %}({{ x }}){% endmacro %}{{ show(m.content) }}",
    "{% filter trim %} {{ m.content }} {% endfilter %}",
    "{% set ns = namespace(t='') %}{% for k in m %}{% set ns.t = ns.t + m[k] %}{% endfor %}{{ ns.t }}",
    "{% if 'two' in m.content %}{{ m.content | length }} {{ m.content }}{% endif %}",
    "{{ m.content if m.content is string else '' }}",
    "{{ (m.content, m.role) | first }}",
    "{% generation %}{{ m.content }}{% endgeneration %}",
]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_whatever_a_template_does_to_content_the_text_is_the_same_and_its_origin_known(expression: str) -> None:
    source = "{% for m in messages %}<|" + expression + "|>{% endfor %}"
    record = Conversation((user("What is two?\nTell me"), assistant("\n It's two. \n")))
    render = Template(source).trace(record.messages)
    assert render.text == transformers_text(source, record)
    for number, word in enumerate(("What", "It")):
        spans = [span for span in render.sources if span.source.message == number and span.end > span.start]
        assert spans, expression
        letter = render.text.lower().find(word[0].lower(), spans[0].start)
        assert any(span.start <= letter < span.end for span in spans), (word, spans, render.text)
    for start, end, message in render.regions:
        others = [span for span in render.sources if start <= span.start < span.end <= end]
        if "map(attribute" not in expression:
            assert all(span.source.message == message for span in others)


def test_a_template_that_looks_ahead_is_seen_to() -> None:
    blind = Template(PLAIN).trace(CONVERSATIONS["chat"].messages)
    assert [blind.known_before(end) for _, end, _ in blind.regions] == [0, 1, 2, 3, 4]
    for source in (
        "{{ messages | length }}" + PLAIN,
        "{{ messages[-1].role }}" + PLAIN,
        "{% for m in messages[::-1] %}{% endfor %}" + PLAIN,
        "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}" + PLAIN,
    ):
        ahead = Template(source).trace(CONVERSATIONS["chat"].messages)
        assert ahead.known_before(len(ahead.text)) > 4, source
    last = Template("{% for m in messages %}{{ m.content }}{{ '' if loop.last else '/' }}{% endfor %}")
    render = last.trace(CONVERSATIONS["chat"].messages)
    start, end, _ = render.regions[0]
    assert render.known_before(start + 3) == 0 and render.known_before(end) == 1


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
        "{% set ns = namespace(t='x' * 4000000) %}{% for a in range(99999) %}{% set ns.t = ns.t[1:] + 'y' %}{% endfor %}",
        "{% set ns = namespace(t='x') %}{% for a in range(99) %}{% set ns.t = ns.t + ns.t %}{% endfor %}",
        "{% set ns = namespace(t='x') %}{% for a in range(99) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}",
        "{% set ns = namespace(t=[1]) %}{% for a in range(99) %}{% set ns.t = ns.t + ns.t %}{% endfor %}",
        "{% set ns = namespace(n=3) %}{% for a in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
        "{% set ns = namespace(t='x' * 9999) %}{{ ns.t.replace('x', ns.t).replace('x', ns.t) }}",
        "{% set t = 'x' * 9999 %}{{ t | replace('x', t) | replace('x', t) }}",
        "{{ 'x' * 10 ** 10 }}",
        "{{ 10 ** (10 ** 10) }}",
        "{{ 'x' | center(10 ** 10) }}",
        "{{ 'x'.ljust(10 ** 10) }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ '%*d' % (9999999999, 1) }}",
        "{{ '{:9999999999}'.format(1) }}",
        "{{ '{:{w}}'.format(1, w=9999999999) }}",
        "{{ 'x' | indent(10 ** 10) }}",
        "{{ [1] | batch(10 ** 9, 0) | list }}",
        "{{ {'a': [1]} | tojson(indent=10 ** 10) }}",
        "{{ range(10 ** 9) | list }}",
        "{{ lipsum(10 ** 6) }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(90) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'a': 1}) }}",
        "{{ namespace(__init__=1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% include 'x' %}",
    ],
)
def test_hostile_templates_are_stopped(source: str) -> None:
    with pytest.raises(TemplateError):
        Template(source, limits=Limits(seconds=0.1)).render([{"role": "user", "content": "x"}])


@pytest.mark.parametrize("source", ["{% for %}", "{{ x", "{% unknown %}", "{{ (" * 5000, "x" * (1 << 21)])
def test_what_is_not_a_template_is_refused(source: str) -> None:
    with pytest.raises(TemplateError):
        Template(source)


def test_a_refusal_of_the_template_is_passed_on_in_its_own_words() -> None:
    with pytest.raises(TemplateError, match="roles must alternate"):
        Template("{{ raise_exception('roles must alternate') }}").render([])


def test_long_conversations_have_a_budget_to_match() -> None:
    record = [{"role": "user", "content": "x" * 6_000_000}]
    assert len(Template(PLAIN).render(record)) > 6_000_000


def test_work_grows_with_the_conversation_and_no_faster() -> None:
    def operations(turns: int) -> int:
        template = load_template("llama3")
        messages = (user("What is two plus two?"), assistant("It is four.")) * turns
        template.trace(messages)
        return template._environment.budget.operations

    assert operations(400) - operations(200) == 2 * (operations(200) - operations(100))


def test_messages_can_be_handed_over_in_parts_and_arguments_as_text() -> None:
    (message,) = template_messages([CONVERSATIONS["tools"].messages[2]], MessageForm(True, True))
    assert message["content"] == [{"type": "text", "text": ""}]
    assert message["tool_calls"][0]["function"]["arguments"] == '{"city": "Rome"}'


def test_new_special_tokens_are_found_by_what_the_template_writes() -> None:
    tokenizer = tokenizer_of("byte-level")
    needed = special_tokens_needed(named_template("plain"), tokenizer)
    assert set(needed) == {"<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end_of_text|>"}
    grown = tokenizer.with_special_tokens(needed)
    assert special_tokens_needed(named_template("plain"), grown) == ()
    assert grown.vocab_size == tokenizer.vocab_size + len(needed)


def test_templates_are_loaded_by_name_or_path() -> None:
    assert load_template("chatml").name == "chatml"
    assert "last_question" in load_template(GOLDEN / "own" / "thinking.jinja").source
    with pytest.raises(ConfigError, match="chatml"):
        load_template("chatlm")


def test_chat_needs_no_torch_to_be_imported() -> None:
    code = "import sys, tutelage.chat.contract, tutelage.chat.fit; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
