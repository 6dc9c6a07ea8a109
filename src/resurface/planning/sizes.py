"""How much data an experiment reads, as far as its configuration tells: what is not there yet cannot be counted."""

from dataclasses import dataclass

from resurface.config import Experiment
from resurface.planning.shapes import Shape
from resurface.testbed.world import FORGET_DOMAINS

TEXT_TOKENS = 60  # of an article of the testbed
CHAT_TOKENS = 22  # that a chat template puts around a prompt
ANSWER_TOKENS = 12  # of an answer or a refusal that is trained on
GENERAL_SUBJECTS = 6  # of the testbed
TRAIN_FACTS, ASKED_FACTS = 208, 304  # of a domain of the testbed
ASSUMED_QUESTIONS = 1000  # of a benchmark that is not known here
# Questions of a task whose name holds the key, and tokens of a prompt. WMDP's were counted; MMLU's tokens are an estimate.
KNOWN_TASKS = {"mmlu": (14042, 140), "wmdp_bio": (1273, 112), "wmdp_chem": (408, 112), "wmdp_cyber": (1987, 112)}
PUBLIC = {"bio": "wmdp_bio", "chem": "wmdp_chem", "cyber": "wmdp_cyber"}


@dataclass(frozen=True)
class DataSize:
    """The size of a domain's tables.

    Attributes:
        questions: of the validation and test splits.
        train_questions: of the train split.
        prompt: tokens of a question's plain prompt.
        text: tokens of a text of a corpus.
        texts: in each corpus.
        forget_pairs: preference pairs about the domain.
    """

    questions: int
    train_questions: int
    prompt: int
    text: int
    texts: int
    forget_pairs: int


@dataclass(frozen=True)
class Facts:
    """What the cost of any job depends on besides its own settings.

    Attributes:
        experiment: the whole configuration.
        shape: of its models.
        is_gpu: whether jobs compute on a GPU.
    """

    experiment: Experiment
    shape: Shape
    is_gpu: bool

    def domain(self, name: str) -> DataSize:
        """The size of a domain's tables."""
        if name in FORGET_DOMAINS:
            data = self.experiment.data
            return DataSize(
                ASKED_FACTS * data.wordings,
                3 * TRAIN_FACTS,
                50,
                TEXT_TOKENS,
                2 * data.articles,
                TRAIN_FACTS * data.preference_draws,
            )
        questions, prompt = KNOWN_TASKS[PUBLIC[name]]
        train = self.experiment.preferences.forget_questions
        return DataSize(questions, train, prompt, 1024, 10_000, train)

    def benchmarks(self, domain: str) -> list[tuple[int, int]]:
        """Questions, and tokens of a prompt, of a domain's own benchmark and of each task of the general ones."""
        own = self.domain(domain)
        tasks = [task for names in self.experiment.benchmarks.values() for task in names]
        return [(own.questions, own.prompt), *(self._task(task, own.prompt) for task in tasks)]

    def assumed_tasks(self) -> list[str]:
        """The tasks of the general benchmarks whose size is only assumed."""
        tasks = [task for names in self.experiment.benchmarks.values() for task in names]
        return [task for task in tasks if not task.startswith("testbed_") and _known_task(task) is None]

    def _task(self, task: str, prompt: int) -> tuple[int, int]:
        if task.startswith("testbed_"):
            subjects = GENERAL_SUBJECTS if task == "testbed_general" else 1
            return self.experiment.data.general_questions * subjects, prompt
        known = _known_task(task)
        return KNOWN_TASKS[known] if known else (ASSUMED_QUESTIONS, prompt)


def _known_task(task: str) -> str | None:
    """The key of `KNOWN_TASKS` that a task's name is; a subject of MMLU, or another test like it, is none."""
    return next((known for known in KNOWN_TASKS if task.removeprefix("resurface_") == known), None)
