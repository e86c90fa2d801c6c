//! A push becomes running containers, or is refused with the reason.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use copal_e2e::{
    device::Device,
    engine, eventually,
    proxy::Proxy,
    repo::{STAY, Services},
    text,
    world::World,
};

const WEB: &str = "mkdir -p /www; echo \"hello from $COPAL_SERVICE_NAME\" > /www/index.html; \
                   exec /bin/busybox httpd -f -p 80 -h /www";

fn web_line() -> String {
    WEB.replace("mkdir", "/bin/busybox mkdir")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_runs_every_service_on_two_devices_and_the_page_answers() {
    // Two agents on one engine that is not the builder's: every image comes through the registry.
    let engine = engine::OwnEngine::start();
    let host = engine.host();
    let mut world = World::new(0).await;
    let proxy = Proxy::on(engine.listen(), &world.cloud.url);
    for _ in 0..2 {
        world.join_as(Device::beside(&engine), Some(&proxy)).await;
    }
    let web = web_line();
    Services {
        services: &[
            ("web", &web, "expose: [\"80\"]\nlabels: {io.copal.update.healthy-after: 2s}"),
            ("worker", STAY, ""),
            (
                "store",
                &format!("echo kept > /data/file; {STAY}"),
                "volumes: [\"data:/data\"]\nstop_grace_period: 1s",
            ),
        ],
    }
    .write_to(&world.repo);
    let release = world.push_and_settle("first").await;

    for index in 0..2 {
        let web = world.service(index, "web").await;
        let address = engine::address(&web).expect("web has an address");
        assert_eq!(engine.page(&format!("http://{address}/")).trim(), "hello from web");
        world.service(index, "worker").await;
        let prefix = world.devices[index].prefix.clone();
        assert_eq!(engine::containers(&prefix, Some(&host)).len(), 3);
    }
    let seen = world.owner.json(&["device", "list", "--fleet", "porch"]).await;
    assert_eq!(seen["items"].as_array().unwrap_or_else(|| panic!("{seen}")).len(), 2);

    // The image that runs is the one that was signed.
    let envelope = world.cloud.get(&format!("/releases/{release}")).await;
    let signed = envelope["services"]["web"].to_string();
    let image = world.service(0, "web").await["Image"].as_str().unwrap().to_owned();
    assert!(signed.contains(&image), "{image} in {signed}");
    let pulled =
        proxy.seen().iter().filter(|path| path.starts_with("/v2/") && path.contains("/blobs/")).count();
    assert!(pulled > 0, "images came through the registry");
    world.devices.clear();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_changes_one_service_leaves_the_others_alone() {
    let world = World::new(1).await;
    let short = "labels: {io.copal.update.healthy-after: 2s}\nstop_grace_period: 1s";
    Services { services: &[("one", STAY, short), ("two", STAY, short), ("three", STAY, short)] }
        .write_to(&world.repo);
    world.push_and_settle("first").await;
    let before =
        [world.service(0, "one").await, world.service(0, "two").await, world.service(0, "three").await];

    world.repo.write("two/run.sh", format!("#!/bin/busybox sh\necho changed\n{STAY}\n"));
    world.push_and_settle("second").await;
    let after =
        [world.service(0, "one").await, world.service(0, "two").await, world.service(0, "three").await];
    for (unchanged, name) in [(0, "one"), (2, "three")] {
        assert_eq!(before[unchanged]["Id"], after[unchanged]["Id"], "{name} kept its container");
        assert_eq!(before[unchanged]["State"]["StartedAt"], after[unchanged]["State"]["StartedAt"], "{name}");
    }
    assert_ne!(before[1]["Id"], after[1]["Id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_build_refuses_the_ref_and_says_where() {
    let world = World::new(1).await;
    let short = "labels: {io.copal.update.healthy-after: 2s}\nstop_grace_period: 1s";
    Services { services: &[("one", STAY, short)] }.write_to(&world.repo);
    let release = world.push_and_settle("first").await;
    let before = world.service(0, "one").await;

    world.repo.write("one/Dockerfile", "FROM scratch\nCOPY busybox /bin/busybox\nCOPY missing.sh /run.sh\n");
    let output = world.repo.push("broken build").await;
    let said = text(&output);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("one/Dockerfile:3"), "file and line: {said}");
    assert!(said.contains("missing.sh"), "{said}");
    let head = world.repo.git(&["ls-remote", "copal", "refs/heads/main"]);
    assert!(!head.contains(world.repo.git(&["rev-parse", "HEAD"]).trim()), "the ref did not move");

    world.repo.write("docker-compose.yml", "services:\n  one:\n    build: ./one\n    links: [two]\n");
    let output = world.repo.push("key we cannot honour").await;
    let said = text(&output);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("docker-compose.yml:4"), "{said}");
    assert!(said.contains("links"), "{said}");

    assert_eq!(world.latest().await["id"], release.as_str());
    assert_eq!(world.service(0, "one").await["Id"], before["Id"], "devices are untouched");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_git_client_is_served_in_its_odder_ways() {
    let world = World::new(0).await;
    Services { services: &[("one", STAY, "")] }.write_to(&world.repo);

    // 50 MB of history that does not compress, over several commits.
    let mut noise = vec![0; 10 << 20];
    for round in 0..5 {
        getrandom::fill(&mut noise).unwrap();
        world.repo.write("noise.bin", &noise);
        world.repo.commit(&format!("noise {round}"));
    }
    world.repo.git(&["rm", "-q", "--cached", "noise.bin"]);
    std::fs::remove_file(world.repo.path().join("noise.bin")).unwrap();
    world.repo.push_ok("big history").await;

    // A wrong token is refused, and says nothing of the repository.
    let wrong = world.cloud.url.replace("http://", "http://anna:copal_wrong@");
    let output = world.repo.push_args(&[&format!("{wrong}/git/porch.git"), "HEAD:main"]).await;
    assert!(!output.status.success());
    assert!(
        text(&output).contains("Authentication failed") || text(&output).contains("401"),
        "{}",
        text(&output)
    );

    // A deleted branch is refused with a reason.
    let output = world.repo.push_args(&["copal", ":main"]).await;
    assert!(!output.status.success());
    assert!(text(&output).contains("delet"), "{}", text(&output));

    // A tag names a version.
    world.repo.git(&["tag", "v1.4.0"]);
    let output = world.repo.push_args(&["copal", "v1.4.0"]).await;
    assert!(output.status.success(), "{}", text(&output));

    // Push options: known ones work, an unknown one is refused with the list.
    world.repo.commit("draft");
    let output = world.repo.push_args(&["-o", "draft", "-o", "note=try it", "copal", "HEAD:main"]).await;
    assert!(output.status.success(), "{}", text(&output));
    let latest = world.latest().await;
    assert_eq!(latest["status"], "draft", "{latest}");
    assert_eq!(latest["note"], "try it");
    world.repo.commit("unknown option");
    let output = world.repo.push_args(&["-o", "colour=red", "copal", "HEAD:main"]).await;
    assert!(!output.status.success());
    assert!(text(&output).contains("draft"), "the list of options: {}", text(&output));

    // A clone gives back what was pushed.
    let remote = world.repo.git(&["remote", "get-url", "copal"]);
    world.repo.git(&["clone", "-q", "-b", "main", remote.trim(), "again"]);
    assert!(world.repo.path().join("again/docker-compose.yml").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn push_options_reach_the_build_and_its_release() {
    let world = World::new(0).await;
    Services { services: &[("one", STAY, "")] }.write_to(&world.repo);
    world.repo.push_ok("first").await;

    // With the cache nothing is done anew, with `nocache` everything.
    world.repo.commit("the same files");
    let said = text(&world.repo.push_args(&["copal", "HEAD:main"]).await);
    assert!(said.contains("4 steps, 3 from the cache"), "{said}");
    world.repo.commit("the same files, anew");
    let said = text(&world.repo.push_args(&["-o", "nocache", "copal", "HEAD:main"]).await);
    assert!(said.contains("4 steps, 0 from the cache"), "{said}");

    // `nowait`: the push ends while the build goes on; what becomes of it is told by the build.
    world.repo.write(
        "one/Dockerfile",
        "FROM scratch\nCOPY busybox /bin/busybox\nCOPY run.sh /run.sh\n\
         RUN [\"/bin/busybox\", \"sleep\", \"6\"]\nCMD [\"/bin/busybox\", \"sh\", \"/run.sh\"]\n",
    );
    let commit = world.repo.commit("slow");
    let options = ["-o", "nowait", "-o", "draft", "-o", "note=made at night", "copal", "HEAD:main"];
    let output = world.repo.push_args(&options).await;
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    let id = said.split("copal build watch ").nth(1).and_then(|rest| rest.split_whitespace().next());
    let id = id.unwrap_or_else(|| panic!("what to follow it with: {said}"));
    let build = world.cloud.get(&format!("/builds/{id}")).await;
    assert!(build["status"] == "queued" || build["status"] == "running", "not waited for: {build}");
    assert_eq!((build["draft"].as_bool(), build["note"].as_str()), (Some(true), Some("made at night")));
    let seen = world.owner.ok(&["build", "watch", id]).await;
    assert!(seen.contains("succeeded"), "{seen}");
    let release = eventually("the draft is there", 30, || async {
        let latest = world.latest().await;
        if latest["commit"] == commit.as_str() { Ok(latest) } else { Err(latest.to_string()) }
    })
    .await;
    assert_eq!(
        (release["status"].as_str(), release["note"].as_str()),
        (Some("draft"), Some("made at night"))
    );
    eventually("the branch has moved", 30, || async {
        let head = world.repo.git(&["ls-remote", "copal", "refs/heads/main"]);
        if head.starts_with(&commit) { Ok(()) } else { Err(head) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_client_neither_stops_nor_doubles_the_build() {
    let world = World::new(0).await;
    Services { services: &[("one", STAY, "")] }.write_to(&world.repo);
    world.repo.write(
        "one/Dockerfile",
        "FROM scratch\nCOPY busybox /bin/busybox\nCOPY run.sh /run.sh\n\
         RUN [\"/bin/busybox\", \"sleep\", \"6\"]\nCMD [\"/bin/busybox\", \"sh\", \"/run.sh\"]\n",
    );
    let commit = world.repo.commit("slow build");
    let mut push = world.repo.command(&["push", "copal", "HEAD:main"]).spawn().unwrap();
    let build = eventually("the build runs", 60, || async {
        let builds = world.cloud.get("/fleets/porch/builds").await;
        let build = builds["items"][0].clone();
        if build["status"] == "running" { Ok(build) } else { Err(builds.to_string()) }
    })
    .await;
    push.kill().unwrap();
    push.wait().unwrap();

    // Pushing again while it builds joins the same build.
    let output = world.repo.push_args(&["copal", "HEAD:main"]).await;
    assert!(output.status.success(), "{}", text(&output));
    let builds = world.cloud.get("/fleets/porch/builds").await;
    let of_commit: Vec<_> =
        builds["items"].as_array().unwrap().iter().filter(|b| b["commit"] == commit.as_str()).collect();
    assert_eq!(of_commit.len(), 1, "{builds}");
    assert_eq!(of_commit[0]["id"], build["id"]);
    eventually("one release", 30, || async {
        let releases = world.cloud.get("/fleets/porch/releases").await;
        let items = releases["items"].as_array().unwrap();
        if items.len() == 1 && items[0]["status"] == "final" { Ok(()) } else { Err(releases.to_string()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_no_registry_has_is_refused_until_it_is_loaded_into_the_builder() {
    let world = World::new(1).await;
    let reference = format!("e2e-{}.invalid/app:1", copal_e2e::unique());
    world.repo.write(
        "docker-compose.yml",
        format!("services:\n  app:\n    image: {reference}\n    stop_grace_period: 1s\n    labels: {{io.copal.update.healthy-after: 2s}}\n"),
    );
    let output = world.repo.push("nowhere").await;
    let said = text(&output);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains(&format!("the image {reference} cannot be had")), "{said}");
    assert!(said.contains("docker load"), "what to do: {said}");

    // The server's keeper puts it there.
    world.repo.add_busybox("loaded");
    world.repo.write("loaded/Dockerfile", "FROM scratch\nCOPY busybox /bin/busybox\nSTOPSIGNAL SIGKILL\nCMD [\"/bin/busybox\", \"sleep\", \"100000\"]\n");
    let folder = world.repo.path().join("loaded");
    engine::docker(None, &["build", "-q", "-t", &reference, folder.to_str().unwrap()]);
    let _gone = Untag(reference.clone());
    std::fs::remove_dir_all(&folder).unwrap();
    let said = world.repo.push_ok("loaded").await;
    assert!(said.contains("taking the copy that the builder's engine holds"), "{said}");
    let release = world.latest().await["id"].as_str().unwrap().to_owned();
    world.on_target(&release).await;
    let runs = world.service(0, "app").await["Image"].as_str().unwrap().to_owned();

    // By its id it is not to be had: ids name what was built for other fleets, too.
    world.repo.write("docker-compose.yml", format!("services:\n  app:\n    image: {runs}\n"));
    let output = world.repo.push("by its id").await;
    assert!(!output.status.success(), "{}", text(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_an_outside_registry_is_pinned_to_its_digest_and_comes_from_our_own() {
    let outside = Outside::start();
    let reference = format!("{}/tools/app:1", outside.address);
    let publish = |note: &str| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy("/bin/busybox", dir.path().join("busybox")).unwrap();
        let text = format!(
            "FROM scratch\nCOPY busybox /bin/busybox\nLABEL note={note}\nSTOPSIGNAL SIGKILL\nCMD [\"/bin/busybox\", \"sleep\", \"100000\"]\n"
        );
        std::fs::write(dir.path().join("Dockerfile"), text).unwrap();
        engine::docker(None, &["build", "-q", "-t", &reference, dir.path().to_str().unwrap()]);
        engine::docker(None, &["push", "-q", &reference]);
        let digests = engine::docker(None, &["image", "inspect", "-f", "{{json .RepoDigests}}", &reference]);
        let id = engine::docker(None, &["image", "inspect", "-f", "{{.Id}}", &reference]);
        // The builder has to pull it.
        engine::docker(None, &["rmi", "-f", id.trim()]);
        let digest = digests.split('@').nth(1).and_then(|d| d.split('"').next()).unwrap().to_owned();
        (id.trim().to_owned(), digest)
    };
    let (first, digest) = publish(&copal_e2e::unique());

    let engine = engine::OwnEngine::start();
    let mut world = World::new(0).await;
    let by_digest = format!("{}/tools/app@{digest}", outside.address);
    let more = "stop_grace_period: 1s\n    labels: {io.copal.update.healthy-after: 2s}";
    world.repo.write(
        "docker-compose.yml",
        format!("services:\n  app:\n    image: {reference}\n    {more}\n  same:\n    image: {by_digest}\n    {more}\n"),
    );
    let _gone = [Untag(reference.clone()), Untag(by_digest.clone())];
    let said = world.repo.push_ok("from outside").await;
    assert!(said.contains(&format!("[app] pulling {reference}")), "{said}");
    assert_eq!(said.matches(&format!("pinned to {digest}")).count(), 2, "{said}");
    let release = world.latest().await;
    let id = release["id"].as_str().unwrap().to_owned();
    let record = world.cloud.get(&format!("/releases/{id}/build-record")).await;
    let payload = BASE64.decode(record["payload"].as_str().unwrap()).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&payload).unwrap();
    assert_eq!(record["external"][&reference], digest.as_str(), "{record}");

    // The tag moves on outside, then the registry is gone: devices get what was signed, from the cloud's own.
    let (second, _) = publish(&copal_e2e::unique());
    assert_ne!(first, second);
    drop(outside);
    let proxy = Proxy::on(engine.listen(), &world.cloud.url);
    world.join_as(Device::beside(&engine), Some(&proxy)).await;
    world.on_target(&id).await;
    for service in ["app", "same"] {
        assert_eq!(world.service(0, service).await["Image"], first.as_str(), "{service}");
    }
    assert!(proxy.seen().iter().any(|path| path.starts_with("/v2/porch/app/blobs/")), "{:?}", proxy.seen());
    world.devices.clear();
}

/// A registry that is not ours: the distribution's, on loopback, where an engine takes plain HTTP.
struct Outside {
    _dir: tempfile::TempDir,
    child: std::process::Child,
    address: String,
}

impl Outside {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Free a moment ago; nobody else is given it so soon.
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: {address}}}\n",
            dir.path().join("data").display()
        );
        std::fs::write(dir.path().join("config.yml"), config).unwrap();
        let child = std::process::Command::new("docker-registry")
            .arg("serve")
            .arg(dir.path().join("config.yml"))
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("docker-registry is installed (tests/setup.sh engine)");
        for _ in 0..100 {
            if std::net::TcpStream::connect(&address).is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        Self { _dir: dir, child, address }
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Untag(String);

impl Drop for Untag {
    fn drop(&mut self) {
        let _ = std::process::Command::new("docker").args(["rmi", &self.0]).output();
    }
}
