//! The allow list: which exports a client may open, by the names in its certificate.
//!
//! Pure, apart from [`Allowed`], which shows a namespace through it. Invariant: what no line allows
//! is neither listed nor opened, by whatever name, and is told apart from nothing by its error.

use ramet_engine::{BlockDevice, Changes, EngineError, Export, Exports, Kind};
use std::sync::Arc;

/// Lines of an allow list; a longer file is a mistake.
const RULES_MAX: usize = 65_536;

/// The lines of an allow list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowList {
    rules: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    client: String,
    exports: Vec<String>,
}

impl AllowList {
    /// Read lines of a client's name and then names of exports, all of which may hold `*` for any
    /// characters. `#` begins a comment.
    ///
    /// # Errors
    /// What is wrong, with the number of the line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut rules = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.split_once('#').map_or(line, |(before, _)| before);
            let mut words = line.split_whitespace().map(str::to_owned);
            let Some(client) = words.next() else { continue };
            let exports: Vec<String> = words.collect();
            if exports.is_empty() {
                return Err(format!("line {number} names a client and no export"));
            }
            if rules.len() == RULES_MAX {
                return Err(format!("there are more than {RULES_MAX} lines"));
            }
            rules.push(Rule { client, exports });
        }
        Ok(AllowList { rules })
    }

    /// What a client with these names may open: what any line for any of them says.
    #[must_use]
    pub fn of(&self, names: &[String]) -> Allowance {
        let concerns = |rule: &&Rule| names.iter().any(|name| matches(&rule.client, name));
        let rules = self.rules.iter().filter(concerns);
        Allowance { exports: rules.flat_map(|rule| rule.exports.iter().cloned()).collect() }
    }
}

/// What one client may open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowance {
    exports: Vec<String>,
}

impl Allowance {
    /// Whether the export with this name may be opened.
    #[must_use]
    pub fn allows(&self, name: &str) -> bool {
        self.exports.iter().any(|pattern| matches(pattern, name))
    }
}

/// Whether `pattern`, in which `*` stands for any characters or none, is all of `text`.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(start) else { return false };
    let mut pieces = rest.split('*');
    let last = pieces.next_back().unwrap_or_default();
    for piece in pieces {
        // The first place will do: what follows has the more room.
        let Some(at) = text.find(piece) else { return false };
        text = &text[at + piece.len()..];
    }
    text.ends_with(last)
}

/// A namespace as one client may see it.
pub(crate) struct Allowed<'a> {
    exports: &'a dyn Exports,
    /// Nothing: everything may be seen.
    allowance: Option<Allowance>,
}

impl<'a> Allowed<'a> {
    pub(crate) fn new(exports: &'a dyn Exports, allowance: Option<Allowance>) -> Self {
        Allowed { exports, allowance }
    }

    fn allows(&self, name: &str) -> bool {
        self.allowance.as_ref().is_none_or(|allowance| allowance.allows(name))
    }

    /// The thing, if its export may be seen: a UUID is not what the list has.
    fn checked<T>(
        &self,
        asked: &str,
        opened: Result<(Export, T), EngineError>,
    ) -> Result<(Export, T), EngineError> {
        match &opened {
            Ok((export, _)) if self.allows(&export.name) => opened,
            // That there is no such thing is told to those only who might have opened it.
            Err(_) if self.allows(asked) => opened,
            Ok(_) | Err(_) => {
                let text = format!(
                    "this client's certificate does not allow '{asked}'; hint: the allow list"
                );
                Err(EngineError::new(Kind::Forbidden, "nbd_export_forbidden", text))
            }
        }
    }
}

impl Exports for Allowed<'_> {
    fn list(&self) -> Vec<Export> {
        let mut exports = self.exports.list();
        exports.retain(|export| self.allows(&export.name));
        exports
    }

    fn open(&self, name: &str) -> Result<(Export, Arc<dyn BlockDevice>), EngineError> {
        self.checked(name, self.exports.open(name))
    }

    fn bases(&self, object: u64) -> Vec<Export> {
        let mut bases = self.exports.bases(object);
        bases.retain(|export| self.allows(&export.name));
        bases
    }

    fn open_changes(
        &self,
        object: u64,
        base: &str,
    ) -> Result<(Export, Arc<dyn Changes>), EngineError> {
        self.checked(base, self.exports.open_changes(object, base))
    }
}
