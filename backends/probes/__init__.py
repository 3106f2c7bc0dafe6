"""What every probe computes, on numpy arrays: the definitions that a backend's own kernels are tested
against. One file for each thing that is decided:

- `kinds`: which probes there are, their versions, columns and what each needs
- `distribution`: next_token, log_odds and kl, of a next-token distribution
- `ranking`: rank, accuracy and top_k, of the order of the logits
- `lens`: lens and patchscope, one reading per layer
- `likelihood`: cross_entropy, logprob and perplexity, of given tokens
- `geometry`: participation ratio and R_V, of rows of activations

Each docstring states the definition, the units, the shapes, the source and the invariances: what can change
without the value changing, so that a comparison along it could never fail.
"""
