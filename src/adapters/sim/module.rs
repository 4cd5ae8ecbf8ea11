//! Parses the language of root modules in the simulated world, one item a line.
//!
//! ```text
//! gateway.content = 10.0.0.1        a field of a resource
//! gateway.zone = eu !               a field whose change replaces the resource
//! backend.via = ${var.gateway}      a field that takes a variable
//! gateway.id = ?                    a field that is known once the resource exists
//! out address = gateway.content     an output
//! secret out token = gateway.token  a sensitive output
//! ```

use std::collections::BTreeMap;

use serde_json::Value;

/// A field of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FieldSpec {
    /// The value; absent if it is only known after the resource was created.
    pub(super) value: Option<String>,
    /// Whether a change replaces the resource.
    pub(super) replaces: bool,
    /// The variable to which the whole value refers.
    pub(super) origin: Option<String>,
}

/// An output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OutputSpec {
    pub(super) resource: String,
    pub(super) field: String,
    pub(super) secret: bool,
}

/// A root module with its variables filled in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Module {
    pub(super) resources: BTreeMap<String, BTreeMap<String, FieldSpec>>,
    pub(super) outputs: BTreeMap<String, OutputSpec>,
}

impl Module {
    /// Parses a module.
    ///
    /// # Errors
    /// The first invalid line, in a sentence.
    pub fn read(text: &str, variables: &BTreeMap<String, Value>) -> Result<Self, String> {
        let mut module = Self::default();
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() || line.starts_with("terraform") || line.starts_with("module") || line == "}" {
                continue;
            }
            module.line(line, variables).map_err(|why| format!("main.tf:{}: {why}", number + 1))?;
        }
        Ok(module)
    }

    fn line(&mut self, line: &str, variables: &BTreeMap<String, Value>) -> Result<(), String> {
        let (target, expression) = line.split_once('=').ok_or_else(|| format!("`{line}` is not an assignment"))?;
        let (target, expression) = (target.trim(), expression.trim());
        let (secret, name) = match (target.strip_prefix("secret out "), target.strip_prefix("out ")) {
            (Some(name), _) => (true, Some(name)),
            (None, name) => (false, name),
        };
        if let Some(name) = name {
            let (resource, field) =
                expression.split_once('.').ok_or_else(|| format!("`{expression}` is not RESOURCE.FIELD"))?;
            let output = OutputSpec { resource: resource.into(), field: field.into(), secret };
            self.outputs.insert(name.trim().into(), output);
            return Ok(());
        }
        let (resource, field) = target.split_once('.').ok_or_else(|| format!("`{target}` is not RESOURCE.FIELD"))?;
        let (expression, replaces) =
            expression.strip_suffix('!').map_or((expression, false), |expression| (expression.trim(), true));
        let value = if expression == "?" { None } else { Some(filled(expression, variables)?) };
        // As in tofu's plans, an interpolation of a single variable counts as a reference to the variable.
        let origin =
            expression.split_once("${var.").and_then(|(_, rest)| rest.split_once('}')).map(|(name, _)| name.to_owned());
        self.resources.entry(resource.into()).or_default().insert(field.into(), FieldSpec { value, replaces, origin });
        Ok(())
    }
}

fn filled(text: &str, variables: &BTreeMap<String, Value>) -> Result<String, String> {
    let Some((before, rest)) = text.split_once("${var.") else { return Ok(text.to_owned()) };
    let (name, after) = rest.split_once('}').ok_or_else(|| format!("`{text}` does not end"))?;
    let value = variables.get(name).ok_or_else(|| format!("No value for required variable `{name}`"))?;
    let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    Ok(format!("{before}{value}{}", filled(after, variables)?))
}
