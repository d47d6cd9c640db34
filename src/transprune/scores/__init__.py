"""What a trained network shows of its own accord: how much each candidate costs in output, and repair without training.

- `least_squares`: a layer's weights from the inputs that it gets and the outputs that are wanted
- `refit`: the pass that does so for every layer, first to last, and `repair` of a smaller network by it
- `evidence`: what the samples show of each layer, and which channels the others can stand in for
- `score`: all of it together, with three measures to choose from
- `rounds`: scored again around the architecture that was found; `compress`: the whole as one call
"""
