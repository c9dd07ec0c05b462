"""Algorithm 1, and the other ways to a rejected response.

`bdhs_sample` is the front door. An example's images are encoded once; each iteration hides image tokens (Eq. 6) or adds
noise (Eq. 9), cuts every sentence of the reference at random (Eq. 7), lets the model complete the sentences together,
joins them, and accepts the response if its meaning differs.

Read in this order: `bdhs` (the public functions), `sampler` (Algorithm 1), `examples` (what is read and encoded),
`reader_pool` (threads that read ahead), `image_corruption` (Eq. 6, 8, 9), `splicing` (Eq. 7) with `sentence_tokens`,
`scheduler` (many examples share the decoder), `stopping` (where a completion ends), `similarity` (whether the meaning
differs), `config`, `results` and `changes` (the words that differ). `responses` samples without a reference, `povid` by
teacher forcing, `llm_corruption` by a stronger language model, with its answers kept in an `answer_file`.
"""

from mmbdhs.sampling.answer_file import AnswerFile
from mmbdhs.sampling.bdhs import bdhs_sample, iter_bdhs_samples
from mmbdhs.sampling.changes import Piece, pieces
from mmbdhs.sampling.config import BDHSConfig, SamplingConfig
from mmbdhs.sampling.examples import EXAMPLE_ERRORS, EncodedExample, ExampleReader, ProcessedExample, PromptExample
from mmbdhs.sampling.image_corruption import Noise
from mmbdhs.sampling.llm_corruption import ChatEndpoint, EndpointError, ask_each, conversation_text, corrupt_responses
from mmbdhs.sampling.povid import povid_sample
from mmbdhs.sampling.reader_pool import ReaderPool
from mmbdhs.sampling.responses import iter_responses, sample_responses, token_draws
from mmbdhs.sampling.results import BDHSFailure, BDHSSample, POVIDSample, SampledResponse
from mmbdhs.sampling.sampler import Sampler
from mmbdhs.sampling.scheduler import Scheduler, Started
from mmbdhs.sampling.similarity import DEFAULT_MODEL, Similarity, SimilarityModel, resolve_similarity, scores
from mmbdhs.sampling.splicing import Reference, SentenceSplice, leading_answer
from mmbdhs.sampling.stopping import ResponseBranch

__all__ = [
    "DEFAULT_MODEL",
    "EXAMPLE_ERRORS",
    "AnswerFile",
    "BDHSConfig",
    "BDHSFailure",
    "BDHSSample",
    "ChatEndpoint",
    "EncodedExample",
    "EndpointError",
    "ExampleReader",
    "Noise",
    "POVIDSample",
    "Piece",
    "ProcessedExample",
    "PromptExample",
    "ReaderPool",
    "Reference",
    "ResponseBranch",
    "SampledResponse",
    "Sampler",
    "SamplingConfig",
    "Scheduler",
    "SentenceSplice",
    "Similarity",
    "SimilarityModel",
    "Started",
    "ask_each",
    "bdhs_sample",
    "conversation_text",
    "corrupt_responses",
    "iter_bdhs_samples",
    "iter_responses",
    "leading_answer",
    "pieces",
    "povid_sample",
    "resolve_similarity",
    "sample_responses",
    "scores",
    "token_draws",
]
