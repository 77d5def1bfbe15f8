"""An image and a table, for each backend that shows such: what a training gives to `run.backend`.

    run.backend(pictures.wandb_image, title="samples", pixels=image.tolist())

The functions are a module of their own, and their arguments JSON, so that they reach a backend in a process of its own.
Large images rather go by the path of a file that you have saved. `its` is the backend's run, and `its.sdk` its SDK's.
"""

import numpy as np


def wandb_image(its, title, pixels):
    import wandb

    its.sdk.log({title: wandb.Image(grey(pixels))}, commit=False)  # its steps stay those of the loop


def wandb_table(its, title, columns, rows):
    import wandb

    its.sdk.log({title: wandb.Table(columns=columns, data=rows)}, commit=False)


def aim_image(its, title, pixels, step):
    import aim

    its.sdk.track(aim.Image(grey(pixels)), name=title, step=step)


def aim_table(its, title, columns, rows, step):
    import aim

    its.sdk.track(aim.Text(markdown(columns, rows)), name=title, step=step)


def mlflow_image(its, title, pixels, step):
    its.sdk.log_image(its.id, grey(pixels), key=title, step=step)


def mlflow_table(its, title, columns, rows):
    its.sdk.log_table(its.id, dict(zip(columns, zip(*rows, strict=True), strict=True)), f"{title}.json")


def trackio_image(its, title, pixels, step):
    import trackio

    its.sdk.log({title: trackio.Image(grey(pixels))}, step=step)


def trackio_table(its, title, columns, rows, step):
    import trackio

    its.sdk.log({title: trackio.Table(columns=columns, data=rows)}, step=step)


def tensorboard_image(its, title, pixels, step):
    its.sdk.add_image(title, grey(pixels), step, dataformats="HW")


def tensorboard_table(its, title, columns, rows, step):
    its.sdk.add_text(title, markdown(columns, rows), step)


def grey(pixels):
    """Make an image of rows of numbers between 0 and 1."""
    return (255 * np.array(pixels)).astype(np.uint8)


def markdown(columns, rows):
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
