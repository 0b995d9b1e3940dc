"""Text: what a language model's answer is owed to in its prompt. Captum's names and signatures."""

from .inputs import ImageMaskInput, InterpretableInput, TextTemplateInput, TextTokenInput
from .language import Continuations, Row
from .llm import LLMAttribution, LLMGradientAttribution
from .remote import RemoteLLMAttribution, RemoteLLMProvider, VLLMProvider
from .result import LLMAttributionResult

__all__ = [
    "Continuations",
    "ImageMaskInput",
    "InterpretableInput",
    "LLMAttribution",
    "LLMAttributionResult",
    "LLMGradientAttribution",
    "RemoteLLMAttribution",
    "RemoteLLMProvider",
    "Row",
    "TextTemplateInput",
    "TextTokenInput",
    "VLLMProvider",
]
