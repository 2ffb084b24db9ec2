//! The object as a file: what is thrown away before it is committed, and what must be in it.
//!
//! Reads and writes ELF in memory; knows nothing of toolchains or of where objects live.

use anyhow::{Context as _, Result, bail};
use aya_obj::{Object, ProgramSection};
use object::build::elf::{Builder, SectionData};
use object::elf::SHT_STRTAB;
use std::collections::BTreeMap;

/// Drops the DWARF sections: they are most of the file, no loader reads them, and the verifier's source lines come from
/// `.BTF.ext`, which stays. With them go the symbols and relocations that only they used.
///
/// # Errors
/// When the file is not an ELF object, or cannot be written again.
pub(super) fn strip(object: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(object).context("the linked probe is not an ELF object")?;
    let mut dropped = Vec::new();
    for section in &mut builder.sections {
        let name = section.name.to_string();
        if name.starts_with(".debug_") || name == ".llvm_addrsig" {
            section.delete = true;
            dropped.push(section.id());
        }
    }
    // A relocation section speaks of the section that `sh_info` names (System V gABI, "Relocation").
    for section in &mut builder.sections {
        if section
            .sh_info_section
            .is_some_and(|target| dropped.contains(&target))
        {
            section.delete = true;
        }
    }
    // LLVM keeps the names of sections and of symbols in one table; this writer wants two.
    let separate = builder
        .sections
        .iter()
        .any(|section| matches!(section.data, SectionData::SectionString));
    if !separate {
        let section = builder.sections.add();
        section.name = b".shstrtab".as_slice().into();
        section.sh_type = SHT_STRTAB;
        section.sh_addralign = 1;
        section.data = SectionData::SectionString;
    }
    builder.delete_orphans();
    let mut stripped = Vec::new();
    builder
        .write(&mut stripped)
        .context("cannot write the stripped object")?;
    Ok(stripped)
}

/// Reads the object as the loader (aya) will, and says what is in it.
///
/// # Errors
/// When the loader cannot parse it, or it has no programs, no maps, data sections, no GPL-compatible licence, no BTF, or a function
/// without BTF's function information: the kernel would refuse it, or the tracer would do nothing.
pub(super) fn inspect(object: &[u8]) -> Result<String> {
    let mut parsed = Object::parse(object).context("the loader cannot read the object")?;
    if parsed.programs.is_empty() || parsed.maps.is_empty() {
        bail!(
            "the object has {} programs and {} maps: it would trace nothing",
            parsed.programs.len(),
            parsed.maps.len()
        );
    }
    let data: Vec<&str> = parsed
        .maps
        .keys()
        .map(String::as_str)
        .filter(|name| name.starts_with('.'))
        .collect();
    if !data.is_empty() {
        bail!(
            "the object has data sections ({}), which the loader creates and leaves zero: keep constants in the code",
            data.join(", ")
        );
    }
    let license = parsed.license.to_string_lossy().into_owned();
    if !license.contains("GPL") {
        bail!(
            "the object's licence is {license:?}: the kernel gives the helpers that the probe needs to GPL programs only"
        );
    }
    if parsed.btf.is_none() || parsed.btf_ext.is_none() {
        bail!("the object has no .BTF or no .BTF.ext section");
    }
    let bare: Vec<&str> = parsed
        .functions
        .values()
        .filter(|function| function.func_info.func_info.is_empty())
        .map(|function| function.name.as_str())
        .collect();
    if !bare.is_empty() {
        bail!(
            "functions without BTF function information: {}",
            bare.join(", ")
        );
    }
    // Relocations are resolved here as at load time: one that names a symbol that is gone fails now and not in the kernel.
    let maps: Vec<_> = parsed
        .maps
        .iter()
        .map(|(name, map)| (name.clone(), map.clone()))
        .collect();
    let text_sections = parsed
        .functions
        .keys()
        .map(|(section, _)| *section)
        .collect();
    parsed
        .relocate_maps(
            maps.iter().map(|(name, map)| (name.as_str(), 0, map)),
            &text_sections,
        )
        .context("the object's references to its maps cannot be resolved")?;
    parsed
        .relocate_calls(&text_sections)
        .context("the object's calls cannot be resolved")?;

    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for program in parsed.programs.values() {
        *kinds.entry(kind(&program.section)).or_default() += 1;
    }
    let kinds: Vec<String> = kinds
        .into_iter()
        .map(|(kind, count)| format!("{count} {kind}"))
        .collect();
    let instructions: usize = parsed
        .functions
        .values()
        .map(|function| function.instructions.len())
        .sum();
    Ok(format!(
        "{} programs ({}), {} maps, {instructions} instructions, licence {license}, BTF with function information",
        parsed.programs.len(),
        kinds.join(", "),
        parsed.maps.len(),
    ))
}

/// The program type's name in lower case, without what follows it.
fn kind(section: &ProgramSection) -> String {
    let name = format!("{section:?}");
    name.split(|character: char| !character.is_alphanumeric())
        .next()
        .unwrap_or_default()
        .to_lowercase()
}
