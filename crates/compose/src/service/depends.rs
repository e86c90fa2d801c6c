//! `depends_on:`, as a list or a map with conditions.

use std::collections::BTreeMap;

use copal_protocol::{
    ids::Name,
    spec::{Condition, DependsOn},
};

use crate::{
    keys,
    problem::{Problems, code},
    read,
    tree::{Node, Value},
};

pub(crate) fn read(node: &Node, p: &mut Problems) -> BTreeMap<Name, DependsOn> {
    let mut all = BTreeMap::new();
    if let Value::Map(entries) = &node.value {
        for entry in entries {
            let Some(name) = read::name(&entry.name, &entry.key, p) else { continue };
            let mut dependency = DependsOn { condition: Condition::ServiceStarted, optional: false };
            for entry in read::map(&entry.node, p) {
                if !keys::one_of(&["condition", "required", "restart"], entry, p) {
                    continue;
                }
                match entry.name.as_str() {
                    "condition" => {
                        let want = "`service_started`, `service_healthy` or `service_completed_successfully`";
                        if let Some(condition) = read::parsed(&entry.node, p, want, condition) {
                            dependency.condition = condition;
                        }
                    }
                    "required" => dependency.optional = !read::boolean(&entry.node, p).unwrap_or(true),
                    _ => {
                        if read::boolean(&entry.node, p) == Some(true) {
                            p.at(
                                &entry.node,
                                code::UNSUPPORTED,
                                "cannot be honoured: a service is restarted only when itself changes",
                                "remove it, and let the service reconnect by itself",
                            );
                        }
                    }
                }
            }
            all.insert(name, dependency);
        }
        return all;
    }
    for item in read::list(node, p) {
        let Some(name) = read::word(item, p).and_then(|text| read::name(text, item, p)) else { continue };
        all.insert(name, DependsOn { condition: Condition::ServiceStarted, optional: false });
    }
    all
}

fn condition(text: &str) -> Option<Condition> {
    Some(match text {
        "service_started" => Condition::ServiceStarted,
        "service_healthy" => Condition::ServiceHealthy,
        "service_completed_successfully" => Condition::ServiceCompletedSuccessfully,
        _ => return None,
    })
}
