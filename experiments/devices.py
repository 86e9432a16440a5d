"""What is said of experiments whose networks were trained on several devices."""

ON_BOTH = """\
**Trained on a CPU and on a GPU.** Some of the committed networks of this experiment were trained on a CPU and \
others on a GPU. Networks of several experiments were trained on both, with the same settings and seed \
(`results/reference/devices.csv` lists them). Their test accuracy at the end on the GPU minus that on the CPU, in \
points, averaged over orders of the images and over momenta:

| norm, batch size | statistics | GPU − CPU | networks | seeds |
|---|---|---|--:|--:|
| batch, 16 | running averages | 0.08 [-0.03, 0.19] | 45 | 15 |
| batch, 16 | exact statistics | 0.045 [-0.052, 0.143] | 45 | 15 |
| renorm, 64 | running averages | 0.0 [-1.8, 1.8] | 26 | 15 |
| renorm, 64 | exact statistics | -0.4 [-1.7, 0.9] | 26 | 15 |
| batch, 64 | running averages | -0.12 [-0.57, 0.33] | 26 | 15 |
| batch, 64 | exact statistics | -0.05 [-0.28, 0.18] | 26 | 15 |
| ghost, 256 | running averages | -0.14 [-0.52, 0.25] | 5 | 5 |
| ghost, 256 | exact statistics | 0.10 [-0.20, 0.39] | 5 | 5 |
| group, 64 | no statistics | 0.18 [-0.05, 0.40] | 11 | 11 |
| batch, 256 | running averages | 0.00 [-0.21, 0.20] | 15 | 15 |
| batch, 256 | exact statistics | 0.15 [-0.04, 0.35] | 15 | 15 |"""
