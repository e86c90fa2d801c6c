//! What the engine shows, asked by the engine's own client: tests do not go by what the agent says of itself.

use std::process::Command;

use serde_json::Value;

/// The engine's client.
pub fn docker(host: Option<&str>, args: &[&str]) -> String {
    let mut command = Command::new("docker");
    if let Some(host) = host {
        command.args(["-H", host]);
    }
    let output = command.args(args).output().unwrap();
    assert!(output.status.success(), "docker {args:?}: {}", crate::text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The `docker inspect` of every container whose name begins with the prefix.
pub fn containers(prefix: &str, host: Option<&str>) -> Vec<Value> {
    let ids = docker(host, &["ps", "-aq", "--no-trunc", "--filter", &format!("name=^/?{prefix}-")]);
    let mut all = Vec::new();
    for id in ids.split_whitespace() {
        let mut command = Command::new("docker");
        if let Some(host) = host {
            command.args(["-H", host]);
        }
        // One that goes away meanwhile is not there.
        let output = command.args(["inspect", id]).output().unwrap();
        if let Ok(Value::Array(one)) = serde_json::from_slice(&output.stdout) {
            all.extend(one);
        }
    }
    all
}

/// The running container of a service, if exactly one runs.
pub fn service(prefix: &str, service: &str, host: Option<&str>) -> Option<Value> {
    let mut found: Vec<Value> = containers(prefix, host)
        .into_iter()
        .filter(|c| c["Config"]["Labels"]["io.copal.service"] == service && c["State"]["Running"] == true)
        .collect();
    (found.len() == 1).then(|| found.remove(0))
}

/// Address of a container on the first of its networks.
pub fn address(container: &Value) -> Option<String> {
    container["NetworkSettings"]["Networks"]
        .as_object()?
        .values()
        .find_map(|n| n["IPAddress"].as_str())
        .filter(|a| !a.is_empty())
        .map(str::to_owned)
}

/// Takes away everything a prefix names.
pub fn remove_all(prefix: &str, host: Option<&str>) {
    for (list, remove) in [
        (vec!["ps", "-aq", "--filter"], vec!["rm", "-fv"]),
        (vec!["network", "ls", "-q", "--filter"], vec!["network", "rm"]),
        (vec!["volume", "ls", "-q", "--filter"], vec!["volume", "rm", "-f"]),
    ] {
        let with_host = |args: &[&str], filter: Option<&str>| {
            let mut command = Command::new("docker");
            if let Some(host) = host {
                command.args(["-H", host]);
            }
            command.args(args).args(filter).output()
        };
        let filter = format!("name={prefix}-");
        let Ok(output) = with_host(&list, Some(&filter)) else { return };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let ids: Vec<&str> = text.split_whitespace().collect();
        if !ids.is_empty() {
            let args: Vec<&str> = remove.iter().copied().chain(ids).collect();
            let _ = with_host(&args, None);
        }
    }
}
