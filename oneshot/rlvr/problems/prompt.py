"""From a problem to the text and the tokens that the model continues."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from oneshot.rlvr.config import PromptConfig
from oneshot.rlvr.problems.data import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render(problem: Problem, tokenizer: PreTrainedTokenizerBase, template: PromptConfig) -> str:
    """The prompt text of a problem.

    Args:
        problem: The problem; the last message that is not the assistant's receives
            `template.few_shot` and `template.suffix`. An assistant's message at the end is the
            beginning of the response: the model continues it.
        tokenizer: Its chat template is used when `template.template` is "chat".
        template: How to render.

    Returns:
        The text, which ends where the response begins.

    Raises:
        ValueError: The tokenizer has no chat template, a plain template was asked for a
            conversation of several messages, or there is no message but the assistant's.
    """
    roles = [message["role"] for message in problem.messages]
    begun = roles[-1] == "assistant"
    question = len(roles) - 1 - begun
    if question < 0 or roles[question] == "assistant":
        raise ValueError(
            f"problem {problem.index}: expected a message to answer, and at most one of the "
            f"assistant behind it, got the roles {roles}"
        )
    last = problem.messages[question]
    content = template.few_shot + last["content"] + template.suffix
    if template.template == "plain":
        if len(problem.messages) > 1:
            raise ValueError(
                f"prompt.template 'plain' takes one message, problem {problem.index} has "
                f"{len(problem.messages)}; use 'chat'"
            )
        return template.plain_format.replace("{problem}", content)
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "prompt.template is 'chat', but the tokenizer has no chat template; use 'plain' with "
            "prompt.plain_format"
        )
    messages: list[dict[str, Any]] = list(problem.messages)
    messages[question] = {**last, "content": content}
    if template.system is not None:
        messages.insert(0, {"role": "system", "content": template.system})
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=not begun, continue_final_message=begun
    )
    assert isinstance(text, str)
    return text


def encode(
    problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, template: PromptConfig
) -> list[list[int]]:
    """Token ids of each prompt.

    A chat template writes its own special tokens. Before a plain prompt come those that the
    tokenizer puts there (a beginning-of-sequence token, where it has one), once; those that it puts
    behind a text would end the prompt before the response begins, and are left out.
    """
    texts = [render(problem, tokenizer, template) for problem in problems]
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    if template.template == "plain":
        ids = [
            _with_prefix(row, tokenizer(text)["input_ids"])
            for row, text in zip(ids, texts, strict=True)
        ]
    empty = next((i for i, row in enumerate(ids) if not row), None)
    if empty is not None:
        raise ValueError(f"problem {problems[empty].index} renders to an empty prompt")
    return ids


def _with_prefix(bare: list[int], whole: list[int]) -> list[int]:
    """The tokens of a text behind the special ones that `whole` has before them, if it has any."""
    begin = next(
        (i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare), None
    )
    if begin is None:
        raise ValueError(
            "prompt.template 'plain': the tokenizer changes a text to which it adds its special "
            "tokens; use 'chat'"
        )
    prefix = whole[:begin]
    return bare if bare[:begin] == prefix else prefix + bare


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that the chat template writes behind a response; None without one."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    from jinja2 import TemplateError

    response = "response"
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": response}]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except (TemplateError, ValueError):  # a template of other roles, or several without a default
        return None
    assert isinstance(text, str)
    ids: list[int] = tokenizer(text.rpartition(response)[2], add_special_tokens=False)["input_ids"]
    added = tokenizer.added_tokens_decoder
    return next((token for token in ids if token in added and added[token].special), None)


def drop_long(
    problems: Sequence[Problem], prompts: Sequence[list[int]], max_tokens: int
) -> tuple[list[Problem], list[list[int]], int]:
    """Leaves out problems whose prompt is longer than `max_tokens`, as the released code does.

    Returns:
        The problems retained, their prompts, and how many were left out.

    Raises:
        ValueError: No problem is left.
    """
    retained = [i for i, prompt in enumerate(prompts) if len(prompt) <= max_tokens]
    if not retained:
        shortest = min(len(prompt) for prompt in prompts)
        raise ValueError(
            f"no prompt has at most max_prompt_tokens = {max_tokens} tokens; the shortest of "
            f"{len(prompts)} has {shortest}"
        )
    return (
        [problems[i] for i in retained],
        [prompts[i] for i in retained],
        len(problems) - len(retained),
    )
