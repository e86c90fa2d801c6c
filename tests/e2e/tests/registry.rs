//! The registry, by the clients people have.

use std::{
    io::Write as _,
    process::{Command, Output, Stdio},
};

use copal_e2e::{cloud::Cloud, engine, owner::Owner, text, unique};
use serde_json::json;

/// `docker` with a configuration folder of its own, so that sign-ins do not meet.
fn docker(config: &std::path::Path, args: &[&str], input: &str) -> Output {
    let mut child = Command::new("docker")
        .args(args)
        .env("DOCKER_CONFIG", config)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_and_skopeo_push_and_pull_and_a_neighbour_sees_nothing() {
    let cloud = Cloud::start().await;
    let owner = Owner::sign_in(&cloud).await;
    owner.fleet("porch", &[]).await;
    owner.fleet("cellar", &[]).await;
    let host = cloud.url.trim_start_matches("http://").to_owned();
    let image = format!("{host}/porch/tool:1");
    let work = tempfile::tempdir().unwrap();
    let config = work.path().join("docker");

    // An image of our own, made from nothing but a busybox.
    std::fs::copy("/bin/busybox", work.path().join("busybox")).unwrap();
    let note = unique();
    let dockerfile = format!(
        "FROM scratch\nCOPY busybox /bin/busybox\nLABEL note={note}\nCMD [\"/bin/busybox\", \"true\"]\n"
    );
    std::fs::write(work.path().join("Dockerfile"), dockerfile).unwrap();
    let built = docker(&config, &["build", "-q", "-t", &image, work.path().to_str().unwrap()], "");
    assert!(built.status.success(), "{}", text(&built));
    let id = String::from_utf8_lossy(&built.stdout).trim().to_owned();

    // Without credentials nothing goes in; with them it does, and comes out the same.
    assert!(!docker(&config, &["push", "-q", &image], "").status.success());
    let login = docker(&config, &["login", &host, "-u", "anna", "--password-stdin"], &cloud.token);
    assert!(login.status.success(), "{}", text(&login));
    let pushed = docker(&config, &["push", "-q", &image], "");
    assert!(pushed.status.success(), "{}", text(&pushed));
    engine::docker(None, &["rmi", "-f", &id]);
    let pulled = docker(&config, &["pull", "-q", &image], "");
    assert!(pulled.status.success(), "{}", text(&pulled));
    let again = engine::docker(None, &["image", "inspect", "-f", "{{.Id}}", &image]);
    engine::docker(None, &["rmi", "-f", &id]);
    assert_eq!(again.trim(), id);

    // skopeo copies within the registry and lists tags.
    let skopeo = |args: &[&str], token: &str| {
        let creds = format!("anna:{token}");
        let with: Vec<String> = args.iter().map(|a| a.replace("CREDS", &creds)).collect();
        Command::new("skopeo").args(with).output().unwrap()
    };
    let source = format!("docker://{image}");
    let target = format!("docker://{host}/porch/tool:2");
    let copied = skopeo(
        &[
            "copy",
            "-q",
            "--src-tls-verify=false",
            "--dest-tls-verify=false",
            "--src-creds=CREDS",
            "--dest-creds=CREDS",
            &source,
            &target,
        ],
        &cloud.token,
    );
    assert!(copied.status.success(), "{}", text(&copied));
    let listed = skopeo(
        &["list-tags", "--tls-verify=false", "--creds=CREDS", &format!("docker://{host}/porch/tool")],
        &cloud.token,
    );
    let tags: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(tags["Tags"], json!(["1", "2"]));

    // A token of the other fleet gets nothing, and cannot tell whether there is something.
    let neighbour =
        cloud.call("POST", "/tokens", json!({"name": "neighbour", "scope": "full", "fleet": "cellar"})).await;
    let neighbour = neighbour["token"].as_str().unwrap();
    for repo in ["porch/tool", "porch/nothing"] {
        let seen = skopeo(
            &["list-tags", "--tls-verify=false", "--creds=CREDS", &format!("docker://{host}/{repo}")],
            neighbour,
        );
        assert!(!seen.status.success(), "{}", text(&seen));
    }
    let stolen = skopeo(
        &[
            "copy",
            "-q",
            "--src-tls-verify=false",
            "--dest-tls-verify=false",
            "--src-creds=CREDS",
            "--dest-creds=CREDS",
            &source,
            &format!("docker://{host}/cellar/tool:1"),
        ],
        neighbour,
    );
    assert!(!stolen.status.success());
}
