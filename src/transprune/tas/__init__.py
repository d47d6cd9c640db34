"""The paper: transformable architecture search (Dong & Yang, NeurIPS 2019, arXiv:1905.09717).

Open `reference.py` first: the whole algorithm for a small ResNet, slow and obvious, in 200 lines of plain torch. The
other modules do the same for any network. What a function of the reference does is done fast by

    reference              fast
    draw                   sampling.ArchitectureParameters.sample, sampling.draw_candidates
    interpolate, pad       alignment.interpolation_entries (widths), .align_channels (depths)
    SlowSupernet           supernet.Supernet
    SlowSupernet.mix       widths: mixing.mixed makes the maps, supernet._Mixing applies them (_candidate_norm, _norm,
                           _mixed_layer); depths: stage_end there
    expected_macs          expected_cost.ExpectedCost
    penalty                bilevel.Bilevel.penalty, which calls expected_cost.sum_of_penalties
    search                 bilevel.Bilevel.step_weights, .step_architecture
    most_probable          probabilities.Probabilities.most_probable; within a budget derivation.derive

`tests/test_reference.py` and `tests/test_supernet.py` hold the one against the other. The rest is what the paper does
not need: `prior` is what a search may know beforehand; `derivation` finds the most probable architecture within
budgets by `integer_program`, and by `local_search` where the time runs out; `baselines` has architectures that nothing
has learned, to compare with.
"""
