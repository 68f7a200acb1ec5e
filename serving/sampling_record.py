"""What answers were sampled with, as it is kept beside them."""

from pydantic import BaseModel, ConfigDict

from serving.engine.sequence import SamplingParams


class Sampling(BaseModel):
    """What the page may choose, with the seed that all lanes share."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    seed: int
    max_tokens: int

    @classmethod
    def of(cls, params: SamplingParams, max_tokens: int) -> "Sampling":
        chosen = {name: getattr(params, name) for name in cls.model_fields if name != "max_tokens"}
        return cls(**chosen, max_tokens=max_tokens)

    def params(self) -> SamplingParams:
        """The same again; `max_tokens` is not among them."""
        return SamplingParams(**self.model_dump(exclude={"max_tokens"}))
