"""A chain of llama.cpp's samplers that is attached to a sequence, so that its device samples.

On a GPU the next token is then chosen where the logits are. It is for answers without a schema,
without penalties and without likelihoods, which need the logits here.
"""

from inference_client.engine.llama import library
from inference_client.engine.sampling import penalises, uniform
from ipc_protocol.inference import Sampling


def suits(sampling: Sampling) -> bool:
    """Whether a chain can do what is asked."""
    return not penalises(sampling)


class Chain:
    """A sampler chain of one request, which goes on at `place` of its answer.

    `close` it after it has been detached.
    """

    def __init__(self, sampling: Sampling, vocabulary: int, place: int = 0) -> None:
        self._attached = False
        self.pointer = library.llama_sampler_chain_init(
            library.llama_sampler_chain_default_params()
        )
        if sampling.temperature <= 0:
            parts = [library.llama_sampler_init_greedy()]
        else:
            # ggml aborts where more are wanted than there are; 0 is all of them.
            top_k = sampling.top_k if sampling.top_k < vocabulary else 0
            seed = int(uniform(sampling.seed, place) * 2**32)
            parts = [
                library.llama_sampler_init_top_k(top_k),
                library.llama_sampler_init_top_p(sampling.top_p, 1),
                library.llama_sampler_init_min_p(sampling.min_p, 1),
                library.llama_sampler_init_temp(sampling.temperature),
                library.llama_sampler_init_dist(seed),
            ]
        for part in parts:
            library.llama_sampler_chain_add(self.pointer, part)

    def attachable(self) -> None:
        """Get ready to be attached. llama.cpp aborts where one chain is attached twice, so what
        was attached before goes on as a copy of itself."""
        if self._attached:
            old, self.pointer = self.pointer, library.llama_sampler_clone(self.pointer)
            library.llama_sampler_free(old)
        self._attached = True

    def accept(self, token: int) -> None:
        """The token has become part of the answer."""
        library.llama_sampler_accept(self.pointer, token)

    def close(self) -> None:
        library.llama_sampler_free(self.pointer)
