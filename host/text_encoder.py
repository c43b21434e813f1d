"""Text encoders of edit models: which of them read pictures, and prompts with pictures in them."""

from collections.abc import Sequence

from torch import Tensor

# Tokenizer classes that take pictures beside the text. Only Qwen-Image numbers them in the prompt.
QWEN, BOOGU = "QwenImageTokenizer", "BooguTokenizer"
PICTURE_READERS = (QWEN, BOOGU)
KREA = "Krea2Tokenizer"
QWEN_TEMPLATE = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects,"
    " background), then explain how the user's text instruction should alter or modify the image. Generate a"
    " new image that meets the user's requirements while maintaining consistency with the original input"
    " where appropriate.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)  # of the host's TextEncodeQwenImageEditPlus
QWEN_PICTURE = "Picture {}: <|vision_start|><|image_pad|><|vision_end|>"


def _tokenizers(clip) -> set[str]:
    return {cls.__name__ for cls in type(clip.tokenizer).__mro__}


def reads_pictures(clip) -> bool:
    """Whether a CLIP's tokenizer takes pictures."""
    return bool(_tokenizers(clip) & set(PICTURE_READERS))


def negative_reads_pictures(clip) -> bool:
    """Whether the negative prompt is shown them too: in Qwen-Image-Edit, not in Boogu."""
    return QWEN in _tokenizers(clip)


def reference_method(clip) -> str:
    """The reference method that the CONDITIONING must set, "" where the model has one: Krea 2 has none."""
    return "index_timestep_zero" if KREA in _tokenizers(clip) else ""


def encode_prompt(clip, prompt: str, pictures: Sequence[Tensor] = ()) -> list:
    """The CONDITIONING of a prompt; pictures (1, h, w, 3) are shown to encoders that read them."""
    if not pictures or not reads_pictures(clip):
        return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    if QWEN in _tokenizers(clip):
        text = "".join(QWEN_PICTURE.format(number) for number in range(1, len(pictures) + 1)) + prompt
        tokens = clip.tokenize(text, images=list(pictures), llama_template=QWEN_TEMPLATE)
    else:
        tokens = clip.tokenize(prompt, images=list(pictures))
    return clip.encode_from_tokens_scheduled(tokens)
