//! The corpus of the fuzz targets, between the repository's text files and the files that libFuzzer wants.
//!
//! `corpus unpack` writes a file for each input of the repository, and for each seed that the captured streams give.
//! `corpus pack` writes the repository's text files from those files, the shortest up to a bound.

use std::io::Write as _;
use std::{env, fs, io};

use proto_tests::corpus::{TARGETS, Target};

fn main() -> io::Result<()> {
    let act = match env::args().nth(1).as_deref() {
        Some("unpack") => unpack,
        Some("pack") => pack,
        _ => return Err(io::Error::other("corpus unpack, or corpus pack")),
    };
    TARGETS.iter().try_for_each(act)
}

fn unpack(target: &Target) -> io::Result<()> {
    fs::create_dir_all(target.directory())?;
    let kept = if target.file().exists() { target.corpus() } else { Vec::new() };
    let kept = kept.iter().map(|input| ("kept", input.to_vec()));
    let seeds = (target.seeds)().into_iter().map(|input| ("seed", input));
    let inputs = kept.chain(seeds).filter(|(_, input)| input.len() <= target.input_bytes_max);
    for (number, (name, input)) in inputs.enumerate() {
        fs::write(target.directory().join(format!("{name}-{number}")), input)?;
    }
    Ok(())
}

fn pack(target: &Target) -> io::Result<()> {
    let files = fs::read_dir(target.directory())?;
    let mut inputs = files.map(|file| fs::read(file?.path())).collect::<io::Result<Vec<_>>>()?;
    inputs.sort_by(|a, b| (a.len(), a).cmp(&(b.len(), b)));
    inputs.dedup();
    let mut bytes = 0;
    inputs.retain(|input| {
        bytes += input.len();
        bytes <= target.corpus_bytes_max
    });
    let mut out = io::BufWriter::new(fs::File::create(target.file())?);
    writeln!(out, "# Inputs of the fuzz target {}, as proto-tests/src/corpus.rs says.", target.name)?;
    for input in inputs {
        for byte in input {
            write!(out, "{byte:02x}")?;
        }
        writeln!(out)?;
    }
    out.flush()
}
