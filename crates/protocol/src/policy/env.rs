//! Variables the cloud may set. Where `env_mode` is declared, only those the signed release lists; and never those
//! by which a loader, interpreter or the agent itself takes its orders.
//!
//! The list of denied names cannot be complete and is not the control: `env_mode` is. It keeps the well-known ways of
//! turning a variable into code shut where the owner left `env_mode` open.

use std::collections::BTreeMap;

use crate::{
    documents::{EnvMode, ServiceRelease},
    verify::{Code, Error},
};

/// The most characters a variable's name may have.
const MAX_NAME: usize = 128;

const LOADER: &str = "the dynamic loader or C library reads it before the program runs";
const SHELL: &str = "shells take code or commands from it";
const INTERPRETER: &str = "the interpreter loads code by it";
const LIBRARY: &str = "a library loads plugins or code by it";
const HELPER: &str = "programs run what it names";
const PATH: &str = "it chooses which program a name means";
const AGENT: &str = "the agent sets it";

/// Names, and beginnings of names where one ends in `*`.
const DENIED: &[(&str, &str)] = &[
    ("LD_*", LOADER),
    ("GCONV_PATH", LOADER),
    ("GETCONF_DIR", LOADER),
    ("GLIBC_TUNABLES", LOADER),
    ("HOSTALIASES", LOADER),
    ("LOCPATH", LOADER),
    ("MALLOC_TRACE", LOADER),
    ("NLSPATH", LOADER),
    ("RESOLV_HOST_CONF", LOADER),
    ("RES_OPTIONS", LOADER),
    ("PATH", PATH),
    ("BASH_ENV", SHELL),
    ("BASH_FUNC_*", SHELL),
    ("BASHOPTS", SHELL),
    ("ENV", SHELL),
    ("IFS", SHELL),
    ("PROMPT_COMMAND", SHELL),
    ("PS4", SHELL),
    ("SHELLOPTS", SHELL),
    ("ZDOTDIR", SHELL),
    ("PYTHONBREAKPOINT", INTERPRETER),
    ("PYTHONEXECUTABLE", INTERPRETER),
    ("PYTHONHOME", INTERPRETER),
    ("PYTHONINSPECT", INTERPRETER),
    ("PYTHONPATH", INTERPRETER),
    ("PYTHONPLATLIBDIR", INTERPRETER),
    ("PYTHONSTARTUP", INTERPRETER),
    ("PYTHONUSERBASE", INTERPRETER),
    ("PYTHONWARNINGS", INTERPRETER),
    ("NODE_OPTIONS", INTERPRETER),
    ("NODE_PATH", INTERPRETER),
    ("NODE_REPL_EXTERNAL_MODULE", INTERPRETER),
    ("PERL5DB", INTERPRETER),
    ("PERL5LIB", INTERPRETER),
    ("PERL5OPT", INTERPRETER),
    ("PERLLIB", INTERPRETER),
    ("RUBYLIB", INTERPRETER),
    ("RUBYOPT", INTERPRETER),
    ("RUBYSHELL", INTERPRETER),
    ("GEM_HOME", INTERPRETER),
    ("GEM_PATH", INTERPRETER),
    ("BUNDLE_GEMFILE", INTERPRETER),
    ("JAVA_TOOL_OPTIONS", INTERPRETER),
    ("JDK_JAVA_OPTIONS", INTERPRETER),
    ("_JAVA_OPTIONS", INTERPRETER),
    ("CLASSPATH", INTERPRETER),
    ("PHPRC", INTERPRETER),
    ("PHP_INI_SCAN_DIR", INTERPRETER),
    ("LUA_CPATH*", INTERPRETER),
    ("LUA_INIT*", INTERPRETER),
    ("LUA_PATH*", INTERPRETER),
    ("DOTNET_ADDITIONAL_DEPS", INTERPRETER),
    ("DOTNET_SHARED_STORE", INTERPRETER),
    ("DOTNET_STARTUP_HOOKS", INTERPRETER),
    ("CORECLR_ENABLE_PROFILING", INTERPRETER),
    ("CORECLR_PROFILER*", INTERPRETER),
    ("ERL_AFLAGS", INTERPRETER),
    ("ERL_FLAGS", INTERPRETER),
    ("ERL_LIBS", INTERPRETER),
    ("ERL_ZFLAGS", INTERPRETER),
    ("ELIXIR_ERL_OPTIONS", INTERPRETER),
    ("JULIA_LOAD_PATH", INTERPRETER),
    ("R_ENVIRON*", INTERPRETER),
    ("R_PROFILE*", INTERPRETER),
    ("OPENSSL_CONF", LIBRARY),
    ("OPENSSL_ENGINES", LIBRARY),
    ("OPENSSL_MODULES", LIBRARY),
    ("GIO_MODULE_DIR", LIBRARY),
    ("GST_PLUGIN_*", LIBRARY),
    ("GTK_MODULES", LIBRARY),
    ("QML2_IMPORT_PATH", LIBRARY),
    ("QT_PLUGIN_PATH", LIBRARY),
    ("BROWSER", HELPER),
    ("EDITOR", HELPER),
    ("GIT_ASKPASS", HELPER),
    ("GIT_CONFIG*", HELPER),
    ("GIT_EDITOR", HELPER),
    ("GIT_EXEC_PATH", HELPER),
    ("GIT_EXTERNAL_DIFF", HELPER),
    ("GIT_PAGER", HELPER),
    ("GIT_PROXY_COMMAND", HELPER),
    ("GIT_SSH*", HELPER),
    ("GIT_TEMPLATE_DIR", HELPER),
    ("LESSCLOSE", HELPER),
    ("LESSOPEN", HELPER),
    ("MANPAGER", HELPER),
    ("PAGER", HELPER),
    ("SHELL", HELPER),
    ("SSH_ASKPASS", HELPER),
    ("SUDO_ASKPASS", HELPER),
    ("VISUAL", HELPER),
    ("COPAL", AGENT),
    ("COPAL_*", AGENT),
];

/// Why the cloud may not set a variable of this name anywhere; `None` where it may.
#[must_use]
pub fn denied_variable(name: &str) -> Option<&'static str> {
    DENIED
        .iter()
        .find(|(denied, _)| match denied.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => name == *denied,
        })
        .map(|(_, why)| *why)
}

/// Whether a text can name a variable or secret: `[A-Za-z_][A-Za-z0-9_.-]*`, at most 128. Secrets become files of
/// this name, so it can neither climb nor hide.
#[must_use]
pub fn is_variable_name(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    first
        && name.len() <= MAX_NAME
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// Checks variables the cloud sets for a service, in the clear or sealed; only their names are looked at.
///
/// # Errors
/// `E_ENV_DENIED` for names that no cloud may set, `E_ENV_UNDECLARED` where `env_mode` is declared.
pub fn check_env(
    mode: EnvMode,
    service: &ServiceRelease,
    env: &BTreeMap<String, String>,
) -> Result<(), Error> {
    for name in env.keys() {
        check_variable(mode, service, name)?;
    }
    Ok(())
}

fn check_variable(mode: EnvMode, service: &ServiceRelease, name: &str) -> Result<(), Error> {
    if !is_variable_name(name) {
        let name: String = name.chars().take(80).collect();
        return Err(Error::new(Code::EnvDenied, format!("{name:?} is not a name for a variable")));
    }
    if let Some(why) = denied_variable(name) {
        return Err(Error::new(
            Code::EnvDenied,
            format!(
                "variable {name} cannot be set from the cloud, because {why}; set it in the compose file"
            ),
        ));
    }
    if mode == EnvMode::Declared && !service.overridable_env.contains(name) {
        return Err(Error::new(
            Code::EnvUndeclared,
            format!("variable {name} is not among those the signed release lets the cloud set"),
        ));
    }
    Ok(())
}
