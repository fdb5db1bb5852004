"""The experiments, one a table of the guide and one for each further knob.

The first half; `experiments_more` has the rest, and the list of all.
"""

from __future__ import annotations

from .settings import NO_CLAIM, Experiment, row


# Every token as large as the text token that it meets, so that alpha means what it says; the layer is the toy's
# nearest to the guide's -6 by relative depth.
BASE = {"vl_hidden_layer": -2, "vl_normalization": "token_rms"}
BASE_WORDS = "Layer -2 of the toy's 8 (relative depth .88; the guide's -6 of 36 is .86), token_rms, anchored, linear"

MATCHING = "a {rc} {rs} on a {rb} background"
STYLE_WORDS = "a {rc} shape on a {rb} background"

_ALPHA_CLAIMS = {
    0.0: "pure text (baseline)",
    0.15: "subtle style hints",
    0.3: "recommended default",
    0.4: "strong style transfer",
    0.5: "strong style transfer; above it VL dominates",
    0.6: "preserves the reference's composition",
    0.7: "preserves the reference's composition",
    0.85: "near-reproduction",
    1.0: "pure VL (experimental)",
}

ALPHA = Experiment(
    "alpha",
    "Alpha",
    "How much of the reference there is in the blend. At alpha > 0.5 with unrelated content, VL dominates and the "
    "text's meaning gets lost (section 1).",
    (
        *(row(f"alpha {alpha:g}", claim, vl_alpha=alpha, **BASE) for alpha, claim in _ALPHA_CLAIMS.items()),
        *(
            row(f"the call's defaults, alpha {alpha:g}", _ALPHA_CLAIMS[alpha], vl_alpha=alpha)
            for alpha in (0.15, 0.3, 0.5, 0.7, 1.0)
        ),
    ),
    f"{BASE_WORDS}, all tokens; the rows of the call's defaults: layer -6, global, anchored, all tokens.",
)

# Relative depth (L + 1 - k) / L of layer -k: 36 layers there, 8 here.
_LAYER_CLAIMS = {
    -1: "the guide's -1 (depth 1.0): heavy artifacts",
    -2: "the guide's -4 to -8 (.92 to .81; -6 is .86): least to moderate artifacts; -6 is the best",
    -3: NO_CLAIM,
    -4: "the guide's -16 (.58): moderate to heavy artifacts",
    -5: NO_CLAIM,
    -6: "the guide's -24 (.36): severe artifacts",
    -7: NO_CLAIM,
    -8: NO_CLAIM,
}

LAYERS = Experiment(
    "layers",
    "Hidden layer",
    "-6 gives the fewest artifacts, the last layers heavy ones, deep layers severe ones; the 617x outlier is a matter "
    "of layer -2 alone (section 2). The toy has no counterpart of the guide's -2 (.97): its layers are too few.",
    (
        *(
            row(f"layer {k}, alpha 1", claim, vl_alpha=1.0, vl_hidden_layer=k, vl_normalization="token_rms")
            for k, claim in _LAYER_CLAIMS.items()
        ),
        *(
            row(f"layer {k}, alpha 0.5", claim, vl_alpha=0.5, vl_hidden_layer=k, vl_normalization="token_rms")
            for k, claim in _LAYER_CLAIMS.items()
        ),
        *(
            row(f"layer {k}, alpha 0.5, not normalised", vl_alpha=0.5, vl_hidden_layer=k, vl_normalization="none")
            for k in (-1, -2, -4, -6, -8)
        ),
    ),
    'All tokens, anchored, linear, token_rms; "not normalised" is the normalization none.',
)

_TOKEN_CLAIMS = {
    "all": "a compromise",
    "text": "recommended, fewest artifacts; alpha 1 is possible (the author an hour later: inert at 0.3)",
    "image": "experimental, needs per_dim; more severe artifacts",
}

TOKENS = Experiment(
    "tokens",
    "Token selection",
    "Text tokens are nearly identical to Qwen3-4B's (.999) and give the fewest artifacts, image tokens (.737) the "
    "most and need per_dim (section 3). The author's correction: text tokens alone leave the picture next to "
    "unchanged at alpha 0.3.",
    (
        *(
            row(f"{tokens}, alpha {alpha:g}", claim, vl_alpha=alpha, vl_token_selection=tokens, **BASE)
            for tokens, claim in _TOKEN_CLAIMS.items()
            for alpha in (0.3, 0.5, 0.7, 1.0)
        ),
        *(
            row(
                f"{tokens}, pool, alpha {alpha:g}",
                vl_alpha=alpha,
                vl_token_selection=tokens,
                vl_alignment="pool",
                **BASE,
            )
            for tokens in ("text", "image", "image_no_markers")
            for alpha in (0.5, 1.0)
        ),
        row(
            "image, pool, per_dim, alpha 0.5",
            "required for image tokens",
            vl_alpha=0.5,
            vl_token_selection="image",
            vl_alignment="pool",
            vl_hidden_layer=-2,
            vl_normalization="per_dim",
        ),
        row(
            "image, pool, global, alpha 0.5",
            "amplifies the outliers catastrophically",
            vl_alpha=0.5,
            vl_token_selection="image",
            vl_alignment="pool",
            vl_hidden_layer=-2,
            vl_normalization="global",
        ),
    ),
    f"{BASE_WORDS}, unless the row says otherwise. Anchored, image tokens lie on the prompt's words alone; pooled, on "
    'every token. Anchored with token_rms, "image" and "image_no_markers" are the same, so the second is measured '
    "pooled only.",
)

CONTROLS = Experiment(
    "controls",
    "Controls: references that show nothing",
    "None: the guide has no controls. A reference of noise or flat grey must match the pair's own reference no more "
    "often than chance; what the prompt loses to it is disruption, not transfer.",
    tuple(
        row(f"{kind}, {tokens}, alpha {alpha:g}", vl_alpha=alpha, vl_token_selection=tokens, reference=kind, **BASE)
        for kind in ("noise", "grey")
        for tokens, alphas in (("all", (0.3, 0.5, 0.7, 1.0)), ("text", (1.0,)))
        for alpha in alphas
    )
    + tuple(
        row(
            f"{kind}, image, pool, alpha 1",
            vl_alpha=1.0,
            vl_token_selection="image",
            vl_alignment="pool",
            reference=kind,
            **BASE,
        )
        for kind in ("noise", "grey")
    ),
    f"{BASE_WORDS}. For grey, pairs whose reference has a gray background do not count towards the background.",
)

_TEXTS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("the prompt", "(the pipeline's default)", {}),
    ("no text", "pure visual features", {"text": ""}),
    ("generic: Describe this image", "VL interprets the image", {"text": "Describe this image"}),
    ("matching description", "anchors the features: significantly better", {"text": MATCHING}),
    ("style description", "emphasises style aspects", {"text": STYLE_WORDS}),
)

TEXT = Experiment(
    "text",
    "Text with the image",
    "A description that matches the reference anchors the embeddings and improves the quality significantly "
    "(section 4).",
    (
        *(
            row(f"{name}, alpha {alpha:g}", claim, vl_alpha=alpha, **BASE, **texts)
            for name, claim, texts in _TEXTS
            for alpha in (0.3, 0.5)
        ),
        row(
            "control: matching description, noise as the picture, alpha 0.5",
            "(the words alone)",
            vl_alpha=0.5,
            **BASE,
            text=MATCHING,
            reference="noise",
        ),
        row("the prompt before the picture, alpha 0.5", vl_alpha=0.5, **BASE, text_position="before"),
        row(
            "matching description before the picture, alpha 0.5",
            vl_alpha=0.5,
            **BASE,
            text=MATCHING,
            text_position="before",
        ),
    ),
    f"{BASE_WORDS}, all tokens. The style description names the reference's colours, as the only style there is here.",
)
