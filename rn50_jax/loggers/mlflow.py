"""MLflow."""

from rn50_jax.loggers.base import Record, RunFacts, remembered, tagged


class Mlflow:
    """A run of an experiment on the server of MLFLOW_TRACKING_URI, named as its work folder, the same over restarts."""

    def __init__(self, run: RunFacts, experiment: str) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        self._status = "FAILED"
        params = [Param(key, str(value)) for key, value in run.config.flat().items()]

        def create() -> str:
            found = self._client.get_experiment_by_name(experiment)
            number = found.experiment_id if found else self._client.create_experiment(experiment)
            identity = str(self._client.create_run(number, run_name=run.workdir.name).info.run_id)
            for start in range(0, len(params), 100):  # as many as a request may have
                self._client.log_batch(identity, params=params[start : start + 100])
            return identity

        self._id = remembered(run.workdir / "mlflow.json", experiment, create)
        self._client.update_run(self._id, status="RUNNING")

    def log(self, record: Record) -> None:
        from mlflow.entities import Metric

        if record.kind == "end":
            self._status = "FINISHED" if record.finished else "KILLED"
        now = int(1000 * record.time)
        metrics = [Metric(name, value, now, record.step) for name, value in tagged(record.metrics).items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._id, self._status)
