"""The interface for Python programs: run an experiment, open a finished run, predict and export.

    import fl_vitlora as fv

    run = fv.run({"clients": 20, "rounds": 5})
    run.predict("photos/").write("photos.csv")

`running` starts a run and `comparing` a comparison. `callbacks` has the contract of objects that
follow them. `finished` opens a finished run, `predictions` classifies images, and `exporting`
writes the model for timm, peft and onnxruntime, with the texts of `model_cards`. `publishing`
uploads an export. The names that a program needs are attributes of the package `fl_vitlora`.
"""
