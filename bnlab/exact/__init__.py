"""Exact statistics: mean and variance of what each batch norm is given when the model is evaluated under just these.

    batches ─ source ─▶ task ─ walk ─▶ check ─▶ statistics
                          └─ operations ──┘

`source` reads the caller's batches. A `task` is a model, its layers, these batches, and how one is evaluated. The
`walk` takes all batches through the network together, a layer at a time: about one forward for each batch. The `check`
evaluates some batches in the ordinary way under the result, and decides: where a layer is given anything else than
what was measured, and where a walk is not possible, `operations` measures again, slowly, by whole forwards of all
batches for each layer. Layers that are called several times depend on their own statistics; `fixed_point` finds these,
for both ways. `measure` goes through all of this, and `population` has the public call.
"""
