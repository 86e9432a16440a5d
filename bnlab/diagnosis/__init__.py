"""What is wrong with a model's batch-norm statistics, what it costs, and what to do: a table of causes, and one loop.

    model, batches ─▶ patient: scores of the same images, as it is and under any change
                         │
    causes (a row each) ─┼─▶ how the mistake is undone         ─▶ scores without it
                         └─▶ what averages it would have left  ─▶ bits that they are described in
                                        │
    diagnose: the loop, and the choice ◀┘ ─▶ report

A change is made in one place, where torch's batch norm runs (`bnlab.model.calls`), or to the images before the first
layer, or to the weights; nothing stays. Of the changes that bring back nearly as much as the best, the one with the
fewest numbers that it was free to choose is named. Exact statistics undo many mistakes. Among these the one is named
under which the averages, as they are, take the fewest bits to describe.

`patient` has the loop over data, `fits` all that is fitted to numbers, `causes` the rows, `diagnose` the choice.
"""
