"""Draw the built-in data set: training and held-out scenes as raw pairs."""

from data_pipelines.shapes_data_set import write_shapes
from ernie_vilg.config.shapes import DrawShapesConfig
from launch.support.program import program


@program("draw_shapes", DrawShapesConfig)
def main(config: DrawShapesConfig) -> None:
    """Draw both splits into `output_dir`."""
    counts = write_shapes(config)
    for split, scenes in counts.items():
        print(f"{config.output_dir}/{split}: {scenes} pairs")


if __name__ == "__main__":
    main()
