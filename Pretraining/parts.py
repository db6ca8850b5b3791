"""The parts of a pretraining, in their order: each begins from files of --out and leaves files there.

So a run that goes on from committed files computes what an uninterrupted one does.
"""

import argparse
import logging
from functools import cached_property

import numpy as np

from cli.startup import import_keras, keep_memory
from Experiment.files import atomic_path, plain_arrays
from Experiment.machine import device_name
from Experiment.pictures import try_to_draw
from Experiment.records import installed_versions
from Models.backbones import BACKBONES
from Pretraining.corpus import Recipe, corpus
from Pretraining.glyphs import SIZE
from Pretraining.photographs import SOURCES
from Pretraining.record import PENDING

log = logging.getLogger("experiment")

AUTOENCODER, DECODER = "autoencoder", "decoder"
VAE_BATCH, VAE_PEAK, VAE_EMA = 64, 2e-3, 0.998
DECODER_PEAK = 1.5e-3
UNET_PEAK, UNET_EMA = 1.5e-3, 0.9995
# Addresses of the fits' random numbers; those of the UNet's cycles follow.
AUTOENCODER_STREAM, DECODER_STREAM, UNET_STREAM = 0, 1, 2

ENCODER_FILE, DECODER_FILE, UNET_FILE, TEXT_FILE = (
    f"{name}.weights.h5" for name in ("image_encoder", "decoder", "unet", "text_encoder")
)


def part_names(until, cycles):
    """Names of the parts up to a last one, the UNet's cycles among them."""
    names = [AUTOENCODER, DECODER, *(f"unet_{cycle}" for cycle in range(1, cycles + 1))]
    return names if until == "unet" else names[: names.index(until) + 1]


class Pretraining:
    """What is pretrained, how, and what of it is done.

    Args:
        args: The command line.
        kind: A `Kind`.
        sources: {tar file: SHA-256} of the photographs, or None.
        record: A `Record` of --out.
    """

    def __init__(self, args, kind, sources, record):
        self.args, self.kind, self.record = args, kind, record
        glyphs = round(kind.glyphs * args.images)
        self.recipe = Recipe(args.seed, args.images, glyphs, args.photographs, sources)

    # What a part is made from, and what it leaves

    def settings(self, part):
        """What decides the result of a part, beside files, flat."""
        names = {AUTOENCODER: ("vae_steps",), DECODER: ("decoder_steps",)}.get(part, ("unet_steps", "batch_size"))
        edges = {"edges": self.kind.edges} if part in (AUTOENCODER, DECODER) else {}
        return {**self.recipe.identity, **edges, **{f"--{name}": getattr(self.args, name) for name in names}}

    def begins_from(self, part):
        """Names of the files that a part begins from."""
        if part == AUTOENCODER:
            return ()
        if part == DECODER:
            return (ENCODER_FILE, DECODER_FILE)
        return (ENCODER_FILE,) if part == "unet_1" else (ENCODER_FILE, UNET_FILE, TEXT_FILE)

    def missing(self, names):
        """The parts among `names` that are to be made (UserError where the record does not fit)."""
        done = 0
        while done < len(names) and self.record.is_done(names[done], self.settings(names[done]), self.begins_from(names[done])):
            done += 1
        if done < len(names):
            self.record.refuse_leftovers(names[done], names)
        self.record.check_files()
        return names[done:]

    def throw_away(self):
        """Remove what earlier runs have left."""
        for name in (self.record.path.name, ENCODER_FILE, DECODER_FILE, UNET_FILE, TEXT_FILE):
            (self.args.out / name).unlink(missing_ok=True)
            (self.args.out / f"{PENDING}{name}").unlink(missing_ok=True)
        for part in part_names("unet", self.args.unet_cycles) if self.args.state else ():
            self.remove_state(part)

    def make(self, names):
        """Make the parts, in their order."""
        self.images, self.captions, self.corpus_seconds = corpus(self.recipe, self.args.state, self.args.processes)
        start_keras()
        from Models.runtime import precision

        with precision(self.args.precision, trainable=True) as self.precision:
            log.info("%s: %s on %s, %s -> %s", self.kind.name, ", ".join(names), device_name(), self.precision,
                     self.args.out)  # fmt: skip
            for part in names:
                make = {AUTOENCODER: self.make_autoencoder, DECODER: self.make_decoder}.get(part, self.make_unet)
                self.finish(part, *make(part))

    def finish(self, part, networks, facts):
        """Save the networks, {file: network}, and record a part."""
        from Pretraining.half import save_half

        for name, network in networks.items():
            save_half(network, self.args.out / f"{PENDING}{name}")
        facts |= {
            "parameters": {name: network.count_params() for name, network in networks.items()},
            "precision": self.precision,
            "device": device_name(),
            "versions": installed_versions(),
        }
        self.record.content |= self.told()
        self.record.add(part, self.settings(part), self.begins_from(part), networks, facts)
        self.remove_state(part)
        self.draw_losses()
        log.info("%s: %s -> %s", part, ", ".join(networks), self.record.path)
        if UNET_FILE in networks:
            try_to_draw("samples", self.draw, networks)

    def draw_losses(self):
        """The picture of the losses so far."""
        from Pretraining.draws import draw_losses

        try_to_draw("the losses", draw_losses, self.record.parts, self.args.out / "losses.png")

    def draw(self, networks):
        """Pictures of what the UNet draws, beside its weights."""
        from Pretraining.draws import draw_samples

        decoder, categories = self.network("decoder"), self.recipe.categories()
        draw_samples(networks[UNET_FILE], decoder, networks[TEXT_FILE], categories, self.args.out, self.args.seed)

    def told(self):
        """What the record says beside the parts."""
        sources = [vars(source) for source in SOURCES if source.file in (self.recipe.sources or {})]
        return {
            "corpus": {**self.recipe.identity, "seconds": round(self.corpus_seconds, 1)},
            "words": self.recipe.words(),
            "categories": self.recipe.categories(),
            "sources": sources,
        }

    def remove_state(self, part):
        """Remove the state of a fit that is done."""
        if self.args.state:
            (self.args.state / f"{part}.npz").unlink(missing_ok=True)

    # Networks and fits

    def network(self, part, load=True):
        """A part of the backbone with the weights in --out, or fresh and the same in every run."""
        import keras

        from Models.faster_layers import use_faster_layers
        from Models.weights import load_weights

        keras.utils.set_random_seed(self.args.seed % 2**32)
        model = use_faster_layers(self.kind.builders[part](SIZE, self.kind.context_shape))
        return load_weights(model, self.args.out / f"{part}.weights.h5") if load else model

    def context_encoder(self, load):
        """The text encoder, likewise."""
        from Models.weights import load_weights
        from Pretraining.text_encoder import text_encoder

        model = text_encoder(self.recipe.words(), self.kind.context_shape[1])
        return load_weights(model, self.args.out / TEXT_FILE) if load else model

    def fit(self, part, number, steps, batch_size, peak, ema):
        """The `Fit` of a part. A killed one goes on only from the same inputs and in the same arithmetic."""
        from Pretraining.resumable import Fit

        inputs = self.record.inputs(self.settings(part), self.begins_from(part))
        settings = inputs | {"--precision": self.precision}
        return Fit(part, number, self.args.seed, steps, batch_size, peak, ema, self.args.state, settings)

    def make_autoencoder(self, part):
        """Returns {file: network} and the figures."""
        from Pretraining.fits import train_autoencoder

        encoder, decoder = self.network("image_encoder", load=False), self.network("decoder", load=False)
        fit = self.fit(part, AUTOENCODER_STREAM, self.args.vae_steps, VAE_BATCH, VAE_PEAK, VAE_EMA)
        facts = train_autoencoder(fit, encoder, decoder, self.images, self.kind.edges)
        return {ENCODER_FILE: encoder, DECODER_FILE: decoder}, facts

    def make_decoder(self, part):
        """Returns {file: network} and the figures."""
        from Pretraining.fits import train_decoder

        decoder = self.network("decoder")
        fit = self.fit(part, DECODER_STREAM, self.args.decoder_steps, VAE_BATCH, DECODER_PEAK, VAE_EMA)
        return {DECODER_FILE: decoder}, train_decoder(fit, decoder, self.moments, self.images, self.kind.edges)

    def make_unet(self, part):
        """Returns {file: network} and the figures."""
        from Pretraining.fits import train_unet

        cycle = int(part.rpartition("_")[2])
        unet, context_encoder = self.network("unet", load=cycle > 1), self.context_encoder(load=cycle > 1)
        fit = self.fit(part, UNET_STREAM + cycle - 1, self.args.unet_steps, self.args.batch_size, UNET_PEAK, UNET_EMA)
        halves = BACKBONES[self.kind.name].side_by_side
        facts = train_unet(fit, unet, context_encoder, self.moments, self.captions, halves)
        return {UNET_FILE: unet, TEXT_FILE: context_encoder}, facts

    @cached_property
    def moments(self):
        """VAE moments of the corpus, float16 (N, 8, 8, 8), from --state if they are there."""
        from Pretraining.fits import encode

        made_by = self.record.made[ENCODER_FILE] + f" {self.recipe.identity} {self.precision}"
        path = self.args.state and self.args.state / "moments.npz"
        if path and path.exists():
            with plain_arrays(path) as data:
                if str(data["made_by"]) == made_by:
                    return data["moments"]
        moments = encode(self.network("image_encoder"), self.images)
        if path:
            with atomic_path(path) as partial:
                np.savez(partial, moments=moments, made_by=made_by)
        return moments


def start_keras():
    """Keras as the scripts have it, in a process that keeps its memory."""
    keep_memory()
    import_keras(argparse.Namespace())
    from Models.runtime import use_hardware

    use_hardware()
