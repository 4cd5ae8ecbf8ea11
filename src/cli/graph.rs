//! Implements `evenkeel graph`: shows instances in order, without a daemon.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::{Done, Failure, Format, Global, output, validate};
use crate::{
    domain::{
        declaration::{Candidate, Selector},
        plan::order,
    },
    model::InstanceId,
};

/// Show instances and their dependencies.
#[derive(Args, Debug)]
pub(crate) struct Graph {
    /// The instances, such as `staging`
    selector: Option<String>,
    /// The folder of the declarations
    #[arg(long, value_name = "FOLDER")]
    state_repo: Option<PathBuf>,
    /// The format of the graph
    #[arg(long, value_enum, default_value_t = Drawing::Tree)]
    draw: Drawing,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Drawing {
    /// A list, grouped by steps
    Tree,
    /// Graphviz
    Dot,
    /// Mermaid
    Mermaid,
}

pub(super) fn run(global: &Global, args: &Graph) -> Done {
    let desired = validate::load(args.state_repo.as_deref())?;
    let selector: Option<Selector> = args.selector.as_deref().map(str::parse).transpose()?;
    let selects = |instance: &crate::domain::declaration::Instance| {
        let candidate = Candidate {
            id: &instance.id,
            kind: instance.kind,
            labels: &instance.labels,
            changed: false,
            drifted: false,
            pending: false,
        };
        selector.as_ref().is_none_or(|selector| selector.selects(&candidate))
    };
    let instances: Vec<_> = desired.instances.values().filter(|instance| selects(instance)).collect();
    if instances.is_empty() {
        return Err(Failure::new("no instance is selected").hint("`evenkeel validate` shows the declared instances"));
    }
    let edges: BTreeMap<InstanceId, BTreeSet<InstanceId>> = instances
        .iter()
        .map(|instance| (instance.id.clone(), instance.upstreams.iter().chain(&instance.after).cloned().collect()))
        .collect();
    let ordered = order(&edges);
    if global.output != Format::Text {
        let rows: Vec<_> =
            ordered.iter().map(|(id, step)| json!({"id": id, "order": step, "after": edges[id]})).collect();
        output::answer(global.output, "graph", &json!({"instances": rows, "problems": desired.problems}))?;
        return Ok(u8::from(!desired.problems.is_empty()));
    }
    output::text(&drawn(args.draw, &ordered, &edges));
    for problem in &desired.problems {
        output::note(&format!("Error: {problem}"));
    }
    Ok(u8::from(!desired.problems.is_empty()))
}

fn drawn(
    drawing: Drawing,
    ordered: &[(InstanceId, usize)],
    edges: &BTreeMap<InstanceId, BTreeSet<InstanceId>>,
) -> String {
    let mut text = String::new();
    let quote = |id: &InstanceId| format!("\"{id}\"");
    let node = |id: &InstanceId| id.to_string().replace(['/', '-'], "_");
    match drawing {
        Drawing::Tree => {
            let rows: Vec<Vec<String>> = ordered
                .iter()
                .map(|(id, step)| {
                    let after: Vec<String> = edges[id].iter().map(ToString::to_string).collect();
                    vec![
                        step.to_string(),
                        id.to_string(),
                        if after.is_empty() { String::new() } else { format!("after {}", after.join(", ")) },
                    ]
                })
                .collect();
            text.push_str(&output::table(&rows));
        }
        Drawing::Dot => {
            text.push_str("digraph evenkeel {\n  rankdir=LR;\n");
            for (id, upstreams) in edges {
                text.push_str(&format!("  {};\n", quote(id)));
                for upstream in upstreams {
                    text.push_str(&format!("  {} -> {};\n", quote(upstream), quote(id)));
                }
            }
            text.push_str("}\n");
        }
        Drawing::Mermaid => {
            text.push_str("graph LR\n");
            for (id, upstreams) in edges {
                text.push_str(&format!("  {}[{id}]\n", node(id)));
                for upstream in upstreams {
                    text.push_str(&format!("  {} --> {}\n", node(upstream), node(id)));
                }
            }
        }
    }
    text
}
