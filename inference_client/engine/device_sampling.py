"""A chain of llama.cpp's samplers that is attached to a sequence, so that its device samples.

On a GPU the next token is then chosen where the logits are. It is for answers without a schema,
without penalties and without likelihoods, which need the logits here.
"""

from inference_client.engine.llama import library
from inference_client.engine.sampling import penalises
from ipc_protocol.inference import Sampling


def suits(sampling: Sampling) -> bool:
    """Whether a chain can do what is asked."""
    return not penalises(sampling)


class Chain:
    """A sampler chain of one request. `close` it after it has been detached."""

    def __init__(self, sampling: Sampling) -> None:
        self.pointer = library.llama_sampler_chain_init(
            library.llama_sampler_chain_default_params()
        )
        if sampling.temperature <= 0:
            parts = [library.llama_sampler_init_greedy()]
        else:
            parts = [
                library.llama_sampler_init_top_k(sampling.top_k),
                library.llama_sampler_init_top_p(sampling.top_p, 1),
                library.llama_sampler_init_min_p(sampling.min_p, 1),
                library.llama_sampler_init_temp(sampling.temperature),
                library.llama_sampler_init_dist(sampling.seed & 0xFFFFFFFF),
            ]
        for part in parts:
            library.llama_sampler_chain_add(self.pointer, part)

    def accept(self, token: int) -> None:
        """The token has become part of the answer."""
        library.llama_sampler_accept(self.pointer, token)

    def close(self) -> None:
        library.llama_sampler_free(self.pointer)
