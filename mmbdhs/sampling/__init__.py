"""Algorithm 1 and the other ways to a rejected response."""

from mmbdhs.sampling.bdhs import bdhs_sample, iter_bdhs_samples
from mmbdhs.sampling.config import BDHSConfig
from mmbdhs.sampling.examples import EXAMPLE_ERRORS, ExampleReader
from mmbdhs.sampling.llm_corruption import ChatEndpoint, EndpointError, ask_each, conversation_text, corrupt_responses
from mmbdhs.sampling.povid import povid_sample
from mmbdhs.sampling.results import BDHSFailure, BDHSSample, ExampleError, POVIDSample
from mmbdhs.sampling.sampler import Sampler
from mmbdhs.sampling.similarity import Similarity, resolve_similarity
from mmbdhs.sampling.splicing import Reference, SentenceSplice

__all__ = [
    "EXAMPLE_ERRORS",
    "BDHSConfig",
    "BDHSFailure",
    "BDHSSample",
    "ChatEndpoint",
    "EndpointError",
    "ExampleError",
    "ExampleReader",
    "POVIDSample",
    "Reference",
    "Sampler",
    "SentenceSplice",
    "Similarity",
    "ask_each",
    "bdhs_sample",
    "conversation_text",
    "corrupt_responses",
    "iter_bdhs_samples",
    "povid_sample",
    "resolve_similarity",
]
