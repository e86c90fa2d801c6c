//! A real git client against the real program and the machine's Docker engine, which `tests/setup.sh engine` starts.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use copal_cloud::{
    app,
    auth::{Role, Scope, tokens, users},
    config::Config,
};
use copal_protocol::{
    documents::{Release, Role as KeyRole, Root},
    envelope::Envelope,
    ids::FleetId,
    testing,
};
use sqlx::ConnectOptions as _;

const FLEET: &str = "f1e2d3c4b5a69788796a5b4c3d2e1f00";

/// A running cloud with one fleet, `demo`, and a token.
struct Cloud {
    dir: tempfile::TempDir,
    serve: Child,
    address: String,
    token: String,
    reader: String,
}

impl Drop for Cloud {
    fn drop(&mut self) {
        let _ = self.serve.kill();
        let _ = self.serve.wait();
        // Its images carry its own name, so that nobody else's are touched.
        if let Ok(name) = fs::read_to_string(self.dir.path().join("builder")) {
            let out = Command::new("docker")
                .args(["images", "-q", "--no-trunc", "--filter", &format!("label=io.copal.build={name}")])
                .output();
            let ids = out.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
            for id in ids.lines() {
                let _ = Command::new("docker").args(["rmi", "-f", id]).output();
            }
        }
    }
}

impl Cloud {
    async fn start(arch: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let (token, reader) = prepare(&data, dir.path(), arch).await;
        let (serve, address) = serve(&data);
        Self { dir, serve, address, token, reader }
    }

    fn restart(&mut self, signal: &str) {
        let pid = self.serve.id().to_string();
        Command::new("kill").args([signal, &pid]).status().unwrap();
        self.serve.wait().unwrap();
        let _ = fs::remove_file(self.dir.path().join("data/run/listen"));
        (self.serve, self.address) = serve(&self.dir.path().join("data"));
    }

    fn url(&self, token: &str) -> String {
        format!("http://x:{token}@{}/git/demo.git", self.address)
    }

    /// A working copy with these files, committed on `main`.
    fn project(&self, name: &str, files: &[(&str, &str)]) -> Project {
        let path = self.dir.path().join(name);
        fs::create_dir_all(&path).unwrap();
        let project = Project { path, url: self.url(&self.token) };
        project.git(&["init", "-q", "-b", "main"]);
        project.commit(files);
        project
    }

    /// A JSON answer of the API.
    fn api(&self, path: &str) -> serde_json::Value {
        let out = Command::new("curl")
            .args(["-sS", "-H", &format!("Authorization: Bearer {}", self.token)])
            .arg(format!("http://{}/api/v1{path}", self.address))
            .output()
            .unwrap();
        serde_json::from_slice(&out.stdout)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&out.stdout)))
    }

    /// Releases, newest first: status, note, document.
    async fn releases(&self) -> Vec<(String, String, Release)> {
        let file = self.dir.path().join("data/copal.db");
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file).read_only(true);
        let mut db = options.connect().await.unwrap();
        let rows: Vec<(String, String, Vec<u8>)> =
            sqlx::query_as("SELECT status, note, envelope FROM releases ORDER BY counter DESC")
                .fetch_all(&mut db)
                .await
                .unwrap();
        rows.into_iter()
            .map(|(status, note, envelope)| {
                let envelope = Envelope::parse::<Release>(&envelope).unwrap();
                (status, note, serde_json::from_slice(envelope.payload()).unwrap())
            })
            .collect()
    }

    fn builds(&self) -> Vec<serde_json::Value> {
        self.api("/fleets/demo/builds")["items"].as_array().unwrap().clone()
    }
}

async fn prepare(data: &Path, dir: &Path, arch: &str) -> (String, String) {
    let app = app::open(Config::local(data.to_owned())).await.unwrap();
    let fleet: FleetId = FLEET.parse().unwrap();
    let owner = testing::fixed_key(77);
    let mut root: Root = testing::OwnerKeys::fixed().root();
    root.fleet_id = fleet;
    root.issued_at = app::now();
    root.expires = app::now() + 86_400;
    root.keys.clear();
    root.roles.clear();
    testing::set_role(&mut root, KeyRole::Root, &[&owner], 1);
    testing::set_role(&mut root, KeyRole::Release, &[&testing::fixed_key(78)], 1);
    testing::set_role(&mut root, KeyRole::Builder, &[&app.keys.builder], 1);
    testing::set_role(&mut root, KeyRole::Assign, &[&app.keys.assign], 1);
    let envelope = testing::sign(&root, &[&owner]).to_bytes();
    let (email, hash) =
        users::prepare(&app, "dev@example.org", "correct horse battery".to_owned()).await.unwrap();
    let mut tx = app.db.write().await.unwrap();
    let user_id = users::upsert(&mut tx, &email, &hash, Role::Developer).await.unwrap();
    let mut made = Vec::new();
    for scope in [Scope::Push, Scope::Read] {
        let new = tokens::NewToken { user_id: &user_id, name: "test", scope, fleet: None, expires_at: None };
        made.push(tokens::create(&mut tx, &new).await.unwrap().1);
    }
    sqlx::query("INSERT INTO fleets (fleet_id, slug, app_id, device_type, arch, root_version, created_at) VALUES ($1, 'demo', $2, 'generic', $3, $4, 0)")
        .bind(FLEET)
        .bind("00112233445566778899aabbccddeeff")
        .bind(arch)
        .bind(i64::try_from(root.version).unwrap())
        .execute(&mut *tx)
        .await
        .unwrap();
    sqlx::query(
        "INSERT INTO roots (fleet_id, version, sha256, envelope, uploaded_at) VALUES ($1, $2, '', $3, 0)",
    )
    .bind(FLEET)
    .bind(i64::try_from(root.version).unwrap())
    .bind(envelope)
    .execute(&mut *tx)
    .await
    .unwrap();
    tx.commit().await.unwrap();
    app.db.close().await;
    let mut name = app.keys.builder.public().id().to_string();
    name.truncate(12);
    fs::write(dir.join("builder"), name).unwrap();
    let reader = made.pop().unwrap();
    (made.pop().unwrap(), reader)
}

fn serve(data: &Path) -> (Child, String) {
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(data.parent().unwrap().join("serve.log"))
        .unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_copal-cloud"))
        .env("COPAL_LOG", "info,sqlx=warn,copal_cloud::git=debug")
        .args(["serve", "--listen", "127.0.0.1:0", "--data"])
        .arg(data)
        .stdin(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    let listen = data.join("run/listen");
    let began = Instant::now();
    loop {
        if let Ok(text) = fs::read_to_string(&listen) {
            return (child, text.trim().to_owned());
        }
        if let Some(status) = child.try_wait().unwrap() {
            let log = fs::read_to_string(data.parent().unwrap().join("serve.log")).unwrap();
            panic!("copal-cloud ended with {status}: {log}");
        }
        assert!(began.elapsed() < Duration::from_secs(60), "copal-cloud does not become ready");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits for something to become true; only then does it matter how long it took.
fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < Duration::from_secs(90), "{what} did not happen");
        std::thread::sleep(Duration::from_millis(100));
    }
}

struct Project {
    path: PathBuf,
    url: String,
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

impl Project {
    fn command(&self, args: &[&str]) -> Command {
        let mut git = Command::new("git");
        git.current_dir(&self.path)
            .args(args)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_AUTHOR_NAME", "a")
            .env("GIT_AUTHOR_EMAIL", "a@example.org")
            .env("GIT_COMMITTER_NAME", "a")
            .env("GIT_COMMITTER_EMAIL", "a@example.org")
            .stdin(Stdio::null());
        git
    }

    fn git(&self, args: &[&str]) -> String {
        let out = self.command(args).output().unwrap();
        assert!(out.status.success(), "git {args:?}: {}", text(&out));
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }

    fn commit(&self, files: &[(&str, &str)]) -> String {
        for (name, content) in files {
            let path = self.path.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "--allow-empty", "-m", "c"]);
        self.git(&["rev-parse", "HEAD"])
    }

    fn push(&self, args: &[&str]) -> (bool, String) {
        let mut all = vec!["push", &self.url];
        all.extend(args);
        let out = self.command(&all).output().unwrap();
        (out.status.success(), text(&out))
    }

    fn remote(&self, reference: &str) -> String {
        self.git(&["ls-remote", &self.url, reference]).split_whitespace().next().unwrap_or("").to_owned()
    }
}

const SCRATCH: &str = "FROM scratch\nCOPY hello.txt /\nCMD [\"/hello\"]\n";

/// A Dockerfile with busybox, whose RUN waits so that things can happen meanwhile.
fn busybox(project: &Project) {
    fs::copy("/bin/busybox", project.path.join("busybox")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_builds_and_says_what_became_of_it_and_everything_wrong_is_refused_with_its_reason() {
    let cloud = Cloud::start("amd64").await;
    let p = cloud.project("p", &[("Dockerfile", SCRATCH), ("hello.txt", "one")]);

    // The first push: built, signed, published.
    let (ok, said) = p.push(&["main"]);
    assert!(ok, "{said}");
    for word in [
        "remote: Dockerfile project (Dockerfile): main for linux/amd64",
        "Dockerfile:2",
        "image sha256:",
        "RELEASED  demo",
        "no device runs this fleet yet",
    ] {
        assert!(said.contains(word), "{word} is missing in:\n{said}");
    }
    let first = p.git(&["rev-parse", "HEAD"]);
    assert_eq!(p.remote("refs/heads/main"), first);
    let build = &cloud.builds()[0];
    assert_eq!(
        (build["status"].as_str(), build["commit"].as_str()),
        (Some("succeeded"), Some(first.as_str()))
    );
    let releases = cloud.releases().await;
    assert_eq!(releases[0].0, "final");
    let config = |r: &Release| r.services["main"].images["linux/amd64"].clone();
    assert_eq!(releases[0].2.commit, first);

    // The same files in another commit: the same image, from the cache.
    p.commit(&[]);
    let (ok, said) = p.push(&["main"]);
    assert!(ok && said.contains("2 from the cache"), "{said}");
    let again = cloud.releases().await;
    assert_eq!(config(&again[0].2), config(&releases[0].2));
    let good = p.git(&["rev-parse", "HEAD"]);

    // What fails refuses the ref and says where.
    let refused = |files: &[(&str, &str)], words: &[&str]| {
        p.commit(files);
        let (ok, said) = p.push(&["main"]);
        assert!(!ok, "{said}");
        assert!(said.contains("pre-receive hook declined"), "{said}");
        for word in words {
            assert!(said.contains(word), "{word:?} is missing in:\n{said}");
        }
        assert_eq!(p.remote("refs/heads/main"), good);
        p.git(&["reset", "-q", "--hard", &good]);
    };
    refused(
        &[("Dockerfile", "FROM scratch\n\n# here\nCOPY missing.txt /\n")],
        &["Dockerfile:4: COPY missing.txt /", "check that the file is committed", "main did not move"],
    );
    refused(&[("Dockerfile", "FROM scratch\nCOPPY a /\n")], &["Dockerfile:2:", "unknown instruction"]);
    refused(
        &[("docker-compose.yml", "services:\n  web:\n    build: .\n    links: [db]\n")],
        &["docker-compose.yml:4:5: services.web.links"],
    );
    refused(
        &[("docker-compose.yml", "services:\n  web:\n    build: .\n    privileged: true\n")],
        &["docker-compose.yml:4:"],
    );
    refused(
        &[("docker-compose.yml", "services:\n  web:\n    build: ./nowhere\n")],
        &["nowhere", "commit the folder"],
    );
    std::os::unix::fs::symlink("/etc/passwd", p.path.join("sneaky")).unwrap();
    refused(&[], &["sneaky: the symbolic link points out of the project"]);
    p.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{first},vendor/lib")]);
    p.git(&["commit", "-q", "-m", "submodule"]);
    let (ok, said) = p.push(&["main"]);
    assert!(!ok && said.contains("vendor/lib is a submodule"), "{said}");
    p.git(&["reset", "-q", "--hard", &good]);

    // Refs.
    let (ok, said) = p.push(&[":main"]);
    assert!(!ok && said.contains("not deleted"), "{said}");
    let (ok, said) = p.push(&["HEAD:refs/notes/x"]);
    assert!(!ok && said.contains("only branches and tags"), "{said}");
    let (ok, said) = p.push(&["-o", "fast", "main:other"]);
    assert!(!ok && said.contains("nocache"), "{said}");

    // A tag names the version; a branch is a draft; a note arrives.
    p.git(&["tag", "v2.3.4"]);
    let (ok, said) = p.push(&["v2.3.4"]);
    assert!(ok && said.contains("RELEASED  demo 2.3.4"), "{said}");
    let (ok, said) = p.push(&["-o", "note=hello there", "main:topic"]);
    assert!(ok && said.contains("a draft, not deployed"), "{said}");
    let newest = &cloud.releases().await[0];
    assert_eq!((newest.0.as_str(), newest.1.as_str()), ("draft", "hello there"));

    // Credentials.
    for (token, why) in [("copal_wrong", "not known"), (cloud.reader.as_str(), "scope")] {
        let q = Project { path: p.path.clone(), url: cloud.url(token) };
        let out = q.command(&["push", &q.url, "main:x"]).output().unwrap();
        assert!(!out.status.success(), "{why}");
    }
    let clone = cloud.dir.path().join("clone");
    let out =
        p.command(&["clone", "-q", &cloud.url(&cloud.reader), clone.to_str().unwrap()]).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    assert_eq!(fs::read_to_string(clone.join("hello.txt")).unwrap(), "one");
    let log = fs::read_to_string(cloud.dir.path().join("serve.log")).unwrap();
    assert!(!log.contains(&cloud.token), "a token is in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_outlives_its_pusher_and_the_same_push_joins_it() {
    let cloud = Cloud::start("amd64").await;
    let p = cloud.project("p", &[]);
    busybox(&p);
    let slow = "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"sleep\", \"8\"]\n";
    let commit = p.commit(&[("Dockerfile", slow)]);
    let mut killed = p.command(&["push", &p.url, "main"]).stderr(Stdio::piped()).spawn().unwrap();
    eventually("the build began", || cloud.builds().first().filter(|b| b["status"] == "running").cloned());
    // Git's helper holds the connection; both go.
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", killed.id())).unwrap();
    for child in children.split_whitespace() {
        Command::new("kill").args(["-9", child]).status().unwrap();
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    let (ok, said) = p.push(&["main"]);
    assert!(said.contains("joining build") && said.contains("Dockerfile:3"), "{said}");
    assert!(ok || said.contains("another push of the same commit finished this build"), "{said}");
    assert_eq!(cloud.builds().len(), 1, "one build for both");
    eventually("the ref moved", || (p.remote("refs/heads/main") == commit).then_some(()));
    assert_eq!(cloud.releases().await.len(), 1);

    // Alone, the killed push still ends in a release.
    let commit = p.commit(&[("Dockerfile", &slow.replace('8', "4"))]);
    let mut killed = p.command(&["push", &p.url, "main"]).stderr(Stdio::piped()).spawn().unwrap();
    eventually("the build began", || {
        (cloud.builds().len() == 2 && cloud.builds()[0]["status"] == "running").then_some(())
    });
    killed.kill().unwrap();
    killed.wait().unwrap();
    eventually("the ref moved", || (p.remote("refs/heads/main") == commit).then_some(()));
    assert_eq!(cloud.builds().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_shut_out_during_a_build_releases_nothing() {
    let cloud = Cloud::start("amd64").await;
    let p = cloud.project("p", &[]);
    busybox(&p);
    let slow = "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"sleep\", \"4\"]\n";
    p.commit(&[("Dockerfile", slow)]);
    let push = p.command(&["push", &p.url, "main"]).stderr(Stdio::piped()).spawn().unwrap();
    eventually("the build began", || cloud.builds().first().filter(|b| b["status"] == "running").cloned());
    let file = cloud.dir.path().join("data/copal.db");
    let mut db = sqlx::sqlite::SqliteConnectOptions::new().filename(file).connect().await.unwrap();
    sqlx::query("UPDATE tokens SET revoked_at = 1 WHERE scope = 'push'").execute(&mut db).await.unwrap();
    let ended = push.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(!ended.status.success() && said.contains("may not push to demo any more"), "{said}");
    let q = Project { path: p.path.clone(), url: cloud.url(&cloud.reader) };
    assert_eq!(q.remote("refs/heads/main"), "");
    assert!(cloud.releases().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_that_stops_during_a_build_says_so_and_leaves_ref_and_engine_clean() {
    let mut cloud = Cloud::start("amd64").await;
    let p = cloud.project("p", &[]);
    busybox(&p);
    p.commit(&[(
        "Dockerfile",
        "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"sleep\", \"60\"]\n",
    )]);
    let mut push =
        p.command(&["push", &p.url, "main"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("the build began", || cloud.builds().first().filter(|b| b["status"] == "running").cloned());
    cloud.restart("-KILL");
    assert!(!push.wait().unwrap().success());
    let mut said = String::new();
    push.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let build = &cloud.builds()[0];
    assert_eq!(build["status"], "failed");
    assert!(build["error"].as_str().unwrap().starts_with("interrupted"), "{build}");
    let q = Project { path: p.path.clone(), url: cloud.url(&cloud.token) };
    assert_eq!(q.remote("refs/heads/main"), "");
    // And it goes on.
    q.commit(&[("Dockerfile", "FROM scratch\nCOPY busybox /bin/busybox\n")]);
    let (ok, said) = q.push(&["main"]);
    assert!(ok, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_arm64_fleet_is_built_for_on_another_machine_and_told_what_to_install_when_it_must_run_something()
{
    if !cfg!(target_arch = "x86_64") {
        return;
    }
    let cloud = Cloud::start("arm64").await;
    let p = cloud.project("p", &[("Dockerfile", SCRATCH), ("hello.txt", "one")]);
    let (ok, said) = p.push(&["main"]);
    assert!(ok && said.contains("main for linux/arm64"), "{said}");
    assert!(cloud.releases().await[0].2.services["main"].images.contains_key("linux/arm64"));
    if !Path::new("/proc/sys/fs/binfmt_misc/qemu-aarch64").exists() {
        busybox(&p);
        p.commit(&[("Dockerfile", "FROM scratch\nCOPY busybox /b\nRUN [\"/b\", \"true\"]\n")]);
        let (ok, said) = p.push(&["main"]);
        assert!(
            !ok && said.contains("Dockerfile:3: RUN") && said.contains("apt-get install qemu-user-static"),
            "{said}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_can_be_uploaded_its_build_followed_and_tried_again() {
    let cloud = Cloud::start("amd64").await;
    let p = cloud.project("p", &[("Dockerfile", "FROM scratch\nCOPY none /\n"), ("hello.txt", "one")]);
    let post = |path: &str, body: Option<&Path>| {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "-X", "POST", "-H", &format!("Authorization: Bearer {}", cloud.token)]);
        if let Some(body) = body {
            curl.arg("--data-binary")
                .arg(format!("@{}", body.display()))
                .args(["-H", "Content-Type: application/x-tar"]);
        }
        let out = curl.arg(format!("http://{}/api/v1{path}", cloud.address)).output().unwrap();
        serde_json::from_slice::<serde_json::Value>(&out.stdout).unwrap()
    };
    let log = |id: &str| {
        let out = Command::new("curl")
            .args(["-sS", "-H", &format!("Authorization: Bearer {}", cloud.token)])
            .arg(format!("http://{}/api/v1/builds/{id}/log?follow=true", cloud.address))
            .output()
            .unwrap();
        text(&out)
    };
    let pack = |name: &str| {
        let tar = cloud.dir.path().join(name);
        let done = Command::new("tar")
            .args(["czf"])
            .arg(&tar)
            .args(["--exclude=.git", "-C"])
            .arg(&p.path)
            .arg(".")
            .status();
        assert!(done.unwrap().success());
        tar
    };
    let build = post("/fleets/demo/builds", Some(&pack("bad.tgz")));
    let id = build["id"].as_str().unwrap_or_else(|| panic!("{build}")).to_owned();
    assert!(log(&id).contains("FAILED  Dockerfile:2: COPY none /"));
    let again = post(&format!("/builds/{id}/retry"), None);
    assert!(log(again["id"].as_str().unwrap()).contains("FAILED"));
    fs::write(p.path.join("Dockerfile"), SCRATCH).unwrap();
    let build = post("/fleets/demo/builds?note=by%20hand", Some(&pack("good.tgz")));
    assert!(log(build["id"].as_str().unwrap()).contains("image sha256:"));
    eventually("it is published", || {
        let release = cloud.api("/fleets/demo/releases")["items"][0].clone();
        (release["status"] == "final" && release["note"] == "by hand").then_some(())
    });
    let missing = post("/builds/00112233445566778899aabbccddeeff/retry", None);
    assert_eq!(missing["code"], "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_whose_files_did_not_change_keeps_its_image() {
    let cloud = Cloud::start("amd64").await;
    let compose = "services:\n  web:\n    build: web\n    depends_on: [db]\n  db:\n    build: db\n    volumes: [\"data:/data\"]\nvolumes: {data: }\n";
    let p = cloud.project(
        "p",
        &[
            ("docker-compose.yml", compose),
            ("web/Dockerfile", SCRATCH),
            ("web/hello.txt", "one"),
            ("db/Dockerfile.template", "# for %%COPAL_ARCH%%\nFROM scratch\nCOPY data-%%COPAL_ARCH%% /\n"),
            ("db/data-amd64", "x"),
        ],
    );
    let (ok, said) = p.push(&["main"]);
    assert!(ok && said.contains("Compose project (docker-compose.yml): db, web for linux/amd64"), "{said}");
    p.commit(&[("web/hello.txt", "two")]);
    let (ok, said) = p.push(&["main"]);
    assert!(ok, "{said}");
    let releases = cloud.releases().await;
    let image = |n: usize, service: &str| releases[n].2.services[service].images["linux/amd64"].clone();
    assert_eq!(image(0, "db"), image(1, "db"));
    assert_ne!(image(0, "web").config_digest, image(1, "web").config_digest);
    assert_eq!(image(0, "web").repo, "demo/web");
    assert!(releases[0].2.volumes.contains_key("data"));
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_megabytes_of_history_stream_through() {
    let cloud = Cloud::start("amd64").await;
    let p = cloud.project("p", &[("Dockerfile", SCRATCH), ("hello.txt", "one")]);
    let mut random = fs::File::open("/dev/urandom").unwrap().take(50 << 20);
    for i in 0..10 {
        let mut file = fs::File::create(p.path.join("blob.bin")).unwrap();
        std::io::copy(&mut random.by_ref().take(5 << 20), &mut file).unwrap();
        p.commit(&[("n.txt", &i.to_string())]);
    }
    p.git(&["rm", "-q", "blob.bin"]);
    p.commit(&[]);
    let (ok, said) = p.push(&["main"]);
    assert!(ok && said.contains("RELEASED"), "{said}");
    let clone = cloud.dir.path().join("clone");
    let out = p.command(&["clone", "-q", &p.url, clone.to_str().unwrap()]).output().unwrap();
    let log = fs::read_to_string(cloud.dir.path().join("serve.log")).unwrap();
    assert!(out.status.success(), "{}\n{log}", text(&out));
}
