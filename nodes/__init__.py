"""The nodes a user wires: one file per node, and the extension that lists them."""

from comfy_api.latest import ComfyExtension, io

from .attribute_dictionary import InlayAttributeDictionary
from .attribute_substitution_encode import AttributeSubstitutionEncode
from .background_blending import InlayBackgroundBlending
from .box_mask import InlayBoxMask
from .change_mask import InlayChangeMask
from .crop_back import InlayCropBack
from .disentangled_inpaint_sampler import DisentangledInpaintSampler
from .disentangled_inpaint_sampler_advanced import DisentangledInpaintSamplerAdvanced
from .identity_encoder_dinov2 import IdentityEncoderDINOv2
from .image_conditioned_pix2pix import ImageConditionedPix2Pix
from .inpaint_conditioning import InlayInpaintConditioning
from .load_adapter import InlayLoadAdapter
from .load_fooocus_inpaint import InlayLoadFooocusInpaint
from .load_image_encoder import InlayLoadImageEncoder
from .load_pix2pix import InlayLoadPix2Pix
from .load_references import InlayLoadReferences
from .load_regular_data import InlayLoadRegularData
from .load_subject import InlayLoadSubject
from .mask_levels import InlayMaskLevels
from .masked_attention_patch import MaskedAttentionPatch
from .object_stitch_conditioning import InlayObjectStitchConditioning
from .paste_back import InlayPasteBack
from .regular_images import InlayRegularImages
from .save_regular_data import InlaySaveRegularData
from .subject_finetune import SubjectFinetune
from .subject_score import InlaySubjectScore
from .training_progress import add_route


class InlayExtension(ComfyExtension):
    async def on_load(self) -> None:
        add_route()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            InlayLoadReferences,
            InlayBoxMask,
            InlayInpaintConditioning,
            InlayPasteBack,
            SubjectFinetune,
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
        ]
