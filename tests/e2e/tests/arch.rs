//! A fleet of another architecture than the cloud's.

use std::{path::Path, process::Command};

use copal_e2e::{cloud::Cloud, engine, owner::Owner, repo::Repo, text};

/// Puts Debian's static busybox for arm64 into `app`, by the script the sample has for it.
fn add_arm64_busybox(repo: &Repo) {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../images/apps/sample/prepare.sh");
    let script = repo.path().join("prepare.sh");
    std::fs::copy(sample, &script).unwrap();
    std::fs::create_dir_all(repo.path().join("app")).unwrap();
    let output = Command::new(&script).args(["arm64", "app"]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_arm64_fleet_builds_on_whatever_the_cloud_runs_on() {
    let cloud = Cloud::start().await;
    let owner = Owner::sign_in(&cloud).await;
    owner
        .ok(&["fleet", "create", "pi", "--device-type", "raspberrypi4-64", "--arch", "arm64", "--yes"])
        .await;
    let repo = Repo::new(&cloud, "pi");
    add_arm64_busybox(&repo);
    // RUN executes arm64 programs while building: emulated where the cloud is of another architecture.
    repo.write(
        "app/Dockerfile",
        "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"sh\", \"-c\", \"/bin/busybox uname -m > /machine\"]\n\
         CMD [\"/bin/busybox\", \"sleep\", \"1000\"]\n",
    );
    repo.write("docker-compose.yml", "services:\n  app:\n    build: ./app\n");
    let said = repo.push_ok("for arm64").await;
    assert!(said.contains("arm64"), "{said}");

    let releases = cloud.get("/fleets/pi/releases").await;
    let services = releases["items"][0]["services"].to_string();
    assert!(services.contains("linux/arm64"), "{services}");
    // The image says so itself, and what ran while building was arm64: pulled from the registry, as a device would.
    let image = format!("e2e-arm64-{}:1", copal_e2e::unique());
    let host = cloud.url.trim_start_matches("http://");
    let source = format!("docker://{host}/pi/app@{}", manifest_of(&services));
    let output = Command::new("skopeo")
        .args(["copy", "--src-tls-verify=false", "--override-arch", "arm64"])
        .args(["--src-creds", &format!("anna:{}", cloud.token), &source, &format!("docker-daemon:{image}")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let arch = engine::docker(None, &["image", "inspect", "-f", "{{.Architecture}}", &image]);
    let machine = engine::docker(None, &["run", "--rm", &image, "/bin/busybox", "cat", "/machine"]);
    engine::docker(None, &["rmi", "-f", &image]);
    assert_eq!(arch.trim(), "arm64");
    assert_eq!(machine.trim(), "aarch64");
}

fn manifest_of(services: &str) -> String {
    let (_, rest) = services.split_once("\"manifest_digest\":\"").unwrap();
    rest.split('"').next().unwrap().to_owned()
}
