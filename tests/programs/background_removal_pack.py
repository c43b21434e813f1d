"""A node pack of another author."""

import torch


class StandIn:
    def encode_image(self, image):
        mask = torch.zeros(image.shape[:3])
        rows, columns = (side // 4 for side in image.shape[1:3])
        mask[:, rows:-rows, columns:-columns] = 1
        return mask


class StandInBackgroundRemoval:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    RETURN_TYPES = ("BACKGROUND_REMOVAL",)
    FUNCTION = "make"

    def make(self):
        return (StandIn(),)


NODE_CLASS_MAPPINGS = {"StandInBackgroundRemoval": StandInBackgroundRemoval}
