"""One step on the host's own UNet in float64 against the equations, masked attention written out densely."""

from dataclasses import replace

import pytest
import torch


def dense_masks(unet, hole):
    """DreamCom eq. 2 for every cross-attention layer: softmax over all words, then times the mask."""

    def replacement(q, k, v, extra):
        batch, tokens, _ = q.shape
        heads = [x.view(batch, -1, extra["n_heads"], extra["dim_head"]).transpose(1, 2) for x in (q, k, v)]
        scores = heads[0] @ heads[1].transpose(-1, -2) / extra["dim_head"] ** 0.5
        height, width = extra["activations_shape"][-2:]
        grid = torch.nn.functional.interpolate(hole[:, None], (height, width), mode="nearest")
        share = scores.softmax(-1) * grid.reshape(batch, 1, tokens, 1)
        return (share @ heads[2]).transpose(1, 2).reshape(batch, tokens, -1)

    blocks = [("input", n) for n in range(20)] + [("middle", 0)] + [("output", n) for n in range(20)]
    return {"patches_replace": {"attn2": dict.fromkeys(blocks, replacement)}}


def reference(trainee, recipe, subject, regular, seed, k):
    """Eq. 1, with tau of eq. 7 and beta of eq. 8, in alphas, one picture after the other."""
    from inlay.training.finetune.data import rows_of_step
    from inlay.training.objective import generator_at

    drawn, batch = generator_at(seed, k), recipe.batch_size
    rows = [(subject, i) for i in rows_of_step(len(subject), batch, k, seed).tolist()]
    rows += [(regular, i) for i in rows_of_step(len(regular), batch, k, seed).tolist()] if regular else []
    times = torch.randint(1000, (len(rows),), generator=drawn)
    noises = torch.randn(len(rows), *subject.latent.shape[1:], generator=drawn).double()
    losses = []
    for (data, i), t, noise in zip(rows, times, noises, strict=True):
        alpha = 1 / (1 + trainee.diffusion.sigmas[t].double() ** 2)
        z0, mask, valid = data.latent[i], data.mask[i], data.valid[i]
        zt = alpha.sqrt() * z0 + (1 - alpha).sqrt() * noise
        hole = data.mask[i]
        options = dense_masks(trainee.unet, hole) if recipe.masked_cross_attention else {}
        x = torch.cat([zt, mask, data.masked[i]])[None]
        found = trainee.unet(x, t[None].float(), context=data.context[:1], transformer_options=options)[0]
        tau = recipe.weight_inside * mask + recipe.weight_outside * (1 - mask)
        error = (tau * (found - noise) ** 2).mean(0, keepdim=True)
        losses.append((error * valid).sum() / valid.sum())
    total = torch.stack(losses[:batch]).mean()
    return total + recipe.beta * torch.stack(losses[batch:]).mean() if regular else total


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["DreamCom", "DreamMix"])
def test_loss_and_gradients_of_a_step(parts, name, checkpointing):
    from inlay.host.models import block_modules
    from inlay.training.finetune.data import Examples
    from inlay.training.finetune.memory import recompute
    from inlay.training.finetune.pipeline import trainable_model
    from inlay.training.finetune.recipes import RECIPES
    from inlay.training.finetune.trainer import loss_of_pass

    def examples(seed):
        generator = torch.Generator().manual_seed(seed)
        latent, masked = (torch.randn(3, 4, 8, 8, generator=generator).double() for _ in range(2))
        mask, valid = torch.zeros(3, 1, 8, 8).double(), torch.ones(3, 1, 8, 8).double()
        mask[..., 2:6, 3 : 5 + seed] = 1
        valid[0, :, :2] = 0
        context = torch.randn(1, 77, 768, generator=generator).double()
        return Examples(latent, mask, masked, valid, context)

    recipe = replace(RECIPES[name], batch_size=2)
    subject, regular = examples(0), examples(1) if recipe.beta else None
    with torch.inference_mode(False), torch.enable_grad():
        trainee = trainable_model(parts.model, recipe, torch.float64, 0)
        generator = torch.Generator().manual_seed(9)
        for p in trainee.adapter.parameters:  # B starts at zero, which would hide half of the gradients
            p.data += 0.02 * torch.randn(p.shape, generator=generator).double()
        wanted = reference(trainee, recipe, subject, regular, 5, 1)
        expected = torch.autograd.grad(wanted, trainee.adapter.parameters)
        if checkpointing:
            recompute(block_modules(trainee.unet))
        loss = loss_of_pass(trainee, recipe, subject, regular, 5, 1)
        gradients = torch.autograd.grad(loss, trainee.adapter.parameters)
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)
    for gradient, target in zip(gradients, expected, strict=True):
        assert target.norm() > 0
        assert (gradient - target).norm() <= 1e-6 * target.norm()
