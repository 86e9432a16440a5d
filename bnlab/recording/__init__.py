"""Recording the batch moments of a training run.

With momentum 1 a batch-norm layer's running buffers *are* the last batch's mean and unbiased variance. `record` lends
each layer a scratch pair of buffers for the time of one call and updates the layer's own average itself, so that the
moments cost no second pass over the activations and whoever looks at the model sees what would be there without it.
Where code that is not torch's runs within the call (a subclass with a `forward` of its own, a hook that came later), it
lends nothing, and compares the moments of the input with what the call has made of the buffers.

`recorder` has the hooks that do this, `self_tuned` those of layers that keep their batches' moments themselves; `block`
puts them on a model, `steps` counts the training's steps, `look` tells what a call has averaged, `watch` and
`membership` notice what goes past the hooks; `frozen` records one pass with the weights as they are.
"""

from bnlab.recording.block import record
from bnlab.recording.frozen import record_frozen

__all__ = ["record", "record_frozen"]
