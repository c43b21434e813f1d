"""The nodes a user wires: one file per node, and the extension that lists them."""

from comfy_api.latest import ComfyExtension, io

from .attribute_substitution_encode import AttributeSubstitutionEncode
from .crop_and_paste import InlayCropBack, InlayCropForPainting, InlayPasteBack
from .disentangled_inpaint_sampler import DisentangledInpaintSampler, DisentangledInpaintSamplerAdvanced
from .edit_prompt import InlayEditPrompt
from .identity_encoder_dinov2 import IdentityEncoderDINOv2
from .image_conditioned_pix2pix import ImageConditionedPix2Pix
from .inpaint_conditioning import (
    InlayBackgroundBlending,
    InlayInpaintConditioning,
    InlayObjectStitchConditioning,
)
from .loaders import (
    InlayLoadAdapter,
    InlayLoadFooocusInpaint,
    InlayLoadImageEncoder,
    InlayLoadPix2Pix,
    InlayLoadSubject,
)
from .masked_attention_patch import MaskedAttentionPatch
from .masks import InlayBoxMask, InlayChangeMask, InlayMaskLevels
from .page import install_examples
from .references import InlayLoadReferences, add_reference_route
from .regular_data import (
    InlayAttributeDictionary,
    InlayLoadRegularData,
    InlayRegularImages,
    InlaySaveRegularData,
)
from .subject_finetune import InlayTrainingOptions, SubjectFinetune
from .subject_score import InlaySubjectScore
from .training_progress import add_route


class InlayExtension(ComfyExtension):
    async def on_load(self) -> None:
        """Add the pack's routes to the server and copy the example pictures."""
        add_route()
        add_reference_route()
        install_examples()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return the pack's nodes, in the order in which they are registered."""
        return [
            InlayLoadReferences,
            InlayBoxMask,
            InlayInpaintConditioning,
            InlayCropForPainting,
            InlayPasteBack,
            SubjectFinetune,
            InlayTrainingOptions,
            MaskedAttentionPatch,
            DisentangledInpaintSampler,
            DisentangledInpaintSamplerAdvanced,
            InlayLoadFooocusInpaint,
            AttributeSubstitutionEncode,
            InlayAttributeDictionary,
            InlayRegularImages,
            InlaySaveRegularData,
            InlayLoadRegularData,
            InlayLoadSubject,
            InlayLoadImageEncoder,
            InlayLoadAdapter,
            InlayLoadPix2Pix,
            IdentityEncoderDINOv2,
            InlayObjectStitchConditioning,
            InlayMaskLevels,
            InlayBackgroundBlending,
            ImageConditionedPix2Pix,
            InlayCropBack,
            InlayChangeMask,
            InlaySubjectScore,
            InlayEditPrompt,
        ]
