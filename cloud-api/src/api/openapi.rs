//! The OpenAPI document, made from the code that serves it. It is checked in as `cloud-api/openapi.json`; a test
//! compares.

use axum::response::{IntoResponse, Response};
use utoipa::openapi::{
    ContactBuilder, InfoBuilder, OpenApi, OpenApiBuilder, SecurityRequirement,
    security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme},
};
use utoipa_axum::router::OpenApiRouter;

/// The document of all routes below `/api/v1`.
#[must_use]
pub fn document() -> OpenApi {
    let mut router = OpenApiRouter::with_openapi(OpenApi::default()).nest("/api/v1", super::router());
    let mut api = OpenApiBuilder::new()
        .info(
            InfoBuilder::new()
                .title("Copal")
                .version(env!("CARGO_PKG_VERSION"))
                .description(Some(
                    "Fleets, devices, releases. Errors are RFC 9457 problem details with a stable `code`; lists come in \
                     pages (`limit`, `after`, `next`). Conventions and codes: docs/api.md.",
                ))
                .contact(None::<ContactBuilder>.map(ContactBuilder::build))
                .build(),
        )
        .security(Some([
            SecurityRequirement::new::<_, [&str; 0], &str>("token", []),
            SecurityRequirement::new::<_, [&str; 0], &str>("session", []),
        ]))
        .build();
    api.merge(router.to_openapi());
    // Handlers are named within their file (`list`, `show`); the document needs names of its own for them.
    for (path, item) in &mut api.paths.paths {
        let methods = [
            ("get", &mut item.get),
            ("post", &mut item.post),
            ("put", &mut item.put),
            ("patch", &mut item.patch),
            ("delete", &mut item.delete),
        ];
        for (method, operation) in methods {
            if let Some(operation) = operation {
                let words = path.trim_start_matches("/api/v1/").split(['/', '-', '_']);
                let words: Vec<_> = words.map(|w| w.trim_matches(['{', '}'])).collect();
                operation.operation_id = Some(format!("{method}_{}", words.join("_")));
            }
        }
    }
    let components = api.components.get_or_insert_default();
    components.add_security_scheme(
        "token",
        SecurityScheme::Http(
            HttpBuilder::new()
                .scheme(HttpAuthScheme::Bearer)
                .description(Some("An API token, `copal_…`."))
                .build(),
        ),
    );
    components.add_security_scheme(
        "session",
        SecurityScheme::ApiKey(ApiKey::Cookie(ApiKeyValue::with_description(
            "copal_session",
            "A signed-in browser (`__Host-copal_session` under TLS); writes also need the header `X-Copal-CSRF: 1`.",
        ))),
    );
    api
}

/// The document as it is checked in and served.
#[must_use]
pub fn text() -> String {
    let mut text = serde_json::to_string_pretty(&document()).expect("an OpenAPI document is always JSON");
    text.push('\n');
    text
}

/// `GET /api/v1/openapi.json`; open, since it says nothing about this server.
pub async fn serve() -> Response {
    static TEXT: std::sync::LazyLock<String> = std::sync::LazyLock::new(text);
    ([(axum::http::header::CONTENT_TYPE, "application/json")], TEXT.as_str()).into_response()
}
