"""What is said of each figure, in the page and in Snakemake's own report.

The workflow reads this whenever it starts, so it imports nothing.
"""

# Of each figure: title, caption, and what it says of the control.
CAPTIONS = {
    "main_table": (
        "Models and attacks",
        "Accuracy on the test questions with its interval, as the variant and template that were selected on validation reach it.",
        "What the control gains under an attack, the attack taught.",
    ),
    "finetuning_curves": (
        "Accuracy under finetuning",
        "Accuracy on the forget questions against the number of finetuning samples, by the data they come from. Each "
        "point takes the template that is better on validation; bands are confidence intervals.",
        "Where a method's line rises above the control's, knowledge resurfaced that the samples did not teach.",
    ),
    "finetuning_recovery": (
        "Recovery under finetuning",
        "The same runs as recovery.",
        "The dashed line is the control's gain over its own accuracy without attack, as a share of its distance to the "
        "original: what the samples teach a model that never knew the domain.",
    ),
    "lens_by_block": (
        "Logit lens",
        "Accuracy on the forget questions when the answer is read from inside the model, by block (across) and stream (down): the "
        "output of attention, the residual stream after it (middle), the output of the MLP, or the output of the block. Above each "
        "panel stand the model's own accuracy without attack and the best cell. A cell lighter than the former may be knowledge that "
        "later blocks hide; with so many cells, some are lighter by chance.",
        "How much lighter, the control's panel shows: it never learned what could be hidden.",
    ),
    "pruning_grid": (
        "Set difference pruning",
        "Accuracy on the forget questions (bold) and general ability (below) after the removal of those weights that are among "
        "the top q percent of their layer by the score on forget data and not among the top p percent by the score on utility "
        "data. Rows name the data and the score.",
        "",
    ),
    "pruning_sparsity": (
        "Where weights were removed",
        "Share of the weights of each layer that the selected variant of pruning sets to zero.",
        "",
    ),
    "perturbations": (
        "Perturbed questions",
        "Accuracy on the forget questions with spelling noise in them, in the template that is better on validation. Naive "
        "noise is the same for every model; informed noise was found on the model itself, or on another method's (from-…).",
        "",
    ),
    "prefixes": (
        "Prefixes",
        "Accuracy on the forget questions with a prefix in front of each, in the template that is better on validation: random "
        "ones, those that plain GCG found for single questions (question…) and enhanced GCG after so many steps on the model itself, "
        "and those that the two found on another method's model (from-…).",
        "A prefix that lifts the control as well says nothing about hidden knowledge.",
    ),
    "search_losses": (
        "Searches for prefixes",
        "Loss by step: thin, of the best candidate of each step; thick, the best so far. Losses of different attacks and models "
        "are not on one scale: what counts is whether a search lowered its own.",
        "",
    ),
    "tradeoff": (
        "Forgetting against general ability",
        "Circles: without attack. Triangles: under the model's strongest attack, which is chosen on validation, at the general "
        "ability that it leaves. Faint points are single seeds, if there are several. Good unlearning would be low, far to the "
        "right, and without a long line.",
        "",
    ),
}


def caption_of(name: str, has_control: bool) -> str:
    """The caption of a figure, which says something of the control only where there is one."""
    _, caption, about_control = CAPTIONS[name]
    return f"{caption} {about_control}" if has_control and about_control else caption
