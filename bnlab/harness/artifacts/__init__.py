"""Networks and the data on which they are trained: `training_runner` makes one, `run` has its files.

    data/, norms/, models/        what settings choose by name, a class for each choice; also `optimizers` and `tasks`.
    job_settings.py               all settings of a job, and the name of the network that they describe.
    run_folder.py                 a network's name and files; no torch.
    data/images/, norms/layers/,  what these classes build or read with torch; also `objectives`, the loss and metric of
    models/networks/              a task.
    dataset.py                    images in memory; `shifts` of those that are predicted, and `corruptions` among them.
    network.py                    a network of a model and a norm; `seeding` has global random generators.
    training.py                   batches and the loop, in memory.
    run.py                        a network on disk.
    training_runner.py            makes sure that a network is there, also after a kill.
    live.py                       TensorBoard and other logs, while a network is trained.

What settings choose, `job_settings` and `run_folder` do not import torch, so that a sweep that has nothing to do does
not wait for it. `build` or `read` imports what stands beside a class when it is called.
"""
