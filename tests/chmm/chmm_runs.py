"""The runs of `fit` and `alternate` that tests kill; see `killed_runs`."""

import killed_runs


class Runner(killed_runs.Runner):
    def __init__(self):
        super().__init__(__file__)

    def run(self, command, *args, **kwargs):
        return super().run(*args, command=command, **kwargs)


def main():
    import chmm_tiny

    from oneshot.chmm import trainer

    # Drawing takes longer than the run; the file is still written where the picture would be.
    trainer.plot_curves = lambda history, path: path.write_bytes(b"")
    trainer.plot_transitions = trainer.plot_sources = lambda *_: None
    commands = {"fit": trainer.fit, "alternate": trainer.alternate}

    def run(tiny, output, order):
        config = chmm_tiny.config(tiny, output, *order["overrides"])
        commands[order["command"]](config, resume=order["resume"])

    killed_runs.serve(run)


if __name__ == "__main__":
    main()
