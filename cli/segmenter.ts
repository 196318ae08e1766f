/**
 * The command line library makes an Intl.Segmenter as it loads, for the layout of help texts. That takes 10 ms, of which
 * most commands have no use: with this loaded first it is made when it is first asked.
 */
const { Segmenter } = Intl;

class LateSegmenter implements Intl.Segmenter {
  readonly #make: () => Intl.Segmenter;
  #made: Intl.Segmenter | null = null;

  constructor(...how: ConstructorParameters<typeof Segmenter>) {
    this.#make = () => new Segmenter(...how);
  }

  segment(input: string): Intl.Segments {
    return this.#real.segment(input);
  }

  resolvedOptions(): Intl.ResolvedSegmenterOptions {
    return this.#real.resolvedOptions();
  }

  get #real(): Intl.Segmenter {
    return this.#made ??= this.#make();
  }
}

Object.defineProperty(Intl, "Segmenter", { value: LateSegmenter });
