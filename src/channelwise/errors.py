"""Every error a user can be shown: the message names the user's own module or argument and the way out."""

SAYS_WHY = "print(channelwise.trace(model, inputs)) says why"
"""The way out where channels must stay."""


def with_hint(error: BaseException, hint: str) -> str:
    """The text of an error and, as a further sentence, what to do about it."""
    text = str(error)
    if not hint:
        return text
    return f"{text if text.endswith(('.', '!', '?')) else f'{text}.'} {hint}"


class ChannelwiseError(Exception):
    """Base of all errors raised on purpose by channelwise."""


class InvalidArgumentError(ChannelwiseError, ValueError):
    """An argument is missing, contradictory, of the wrong type or out of range."""


class UnsupportedModelError(ChannelwiseError, TypeError):
    """The model is of a kind that cannot be traced (scripted, quantised, lazy, compiled)."""


class TraceError(ChannelwiseError, RuntimeError):
    """The model could not be run on the example inputs."""


class NothingToPruneError(ChannelwiseError, RuntimeError):
    """No channel group is left to prune: all are frozen or excluded."""


class UnreachableTargetError(ChannelwiseError, ValueError):
    """A budget outside what any selection can reach; the message states the reachable range."""


class EvaluationError(ChannelwiseError, RuntimeError):
    """A function of the user or the model failed on data, or returned something that is not a score."""


class ResultsFileError(ChannelwiseError, RuntimeError):
    """A results file is damaged, of another network, of a newer format, or cannot be written."""
