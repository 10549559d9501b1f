"""Record what a study tried and observed: trials, the journal, Pareto fronts."""
